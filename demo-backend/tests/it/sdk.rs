//! A client library that was not written for this server.

use async_openai::{Client, config::OpenAIConfig, types::chat::FinishReason};
use demo_backend::{MockBackend, Reply};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn client(backend: &MockBackend) -> Client<OpenAIConfig> {
    let base = format!("{}/v1", backend.url());
    let config = OpenAIConfig::new().with_api_base(base).with_api_key("none");
    Client::with_config(config)
}

/// A request of the library's own type.
fn typed<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

fn hello() -> Value {
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]})
}

#[tokio::test]
async fn it_chats() {
    let backend = MockBackend::builder()
        .script([Reply::text("Hello you")])
        .start()
        .await
        .unwrap();
    let answer = client(&backend)
        .chat()
        .create(typed(hello()))
        .await
        .unwrap();
    assert_eq!(
        answer.choices[0].message.content.as_deref(),
        Some("Hello you")
    );
    assert_eq!(answer.choices[0].finish_reason, Some(FinishReason::Stop));
    assert_eq!(answer.usage.unwrap().completion_tokens, 2);
}

#[tokio::test]
async fn it_streams_chats() {
    let backend = MockBackend::builder()
        .script([Reply::text("Hello you")])
        .start()
        .await
        .unwrap();
    let mut request = hello();
    request["stream_options"] = json!({"include_usage": true});
    let mut chunks = client(&backend)
        .chat()
        .create_stream(typed(request))
        .await
        .unwrap();
    let (mut text, mut usage) = (String::new(), None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.unwrap();
        if let Some(choice) = chunk.choices.first() {
            text.push_str(choice.delta.content.as_deref().unwrap_or_default());
        }
        usage = chunk.usage.or(usage);
    }
    assert_eq!(text, "Hello you");
    assert_eq!(usage.unwrap().completion_tokens, 2);
}

#[tokio::test]
async fn it_completes_embeds_and_lists() {
    let backend = MockBackend::builder().tokens(3).start().await.unwrap();
    let client = client(&backend);
    let request = json!({"model": "m", "prompt": "Once"});
    let answer = client.completions().create(typed(request)).await.unwrap();
    assert_eq!(answer.choices[0].text.split(' ').count(), 3);
    let request = json!({"model": "e", "input": ["a", "b"], "dimensions": 8});
    let answer = client.embeddings().create(typed(request)).await.unwrap();
    assert_eq!(answer.data[1].embedding.len(), 8);
    let models = client.models().list().await.unwrap();
    let model = client.models().retrieve(&models.data[0].id).await.unwrap();
    assert_eq!(model.id, models.data[0].id);
}

#[tokio::test]
async fn it_understands_errors() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut request = hello();
    request["temperature"] = json!(3);
    let error = client(&backend)
        .chat()
        .create(typed(request))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("temperature: 3 is not from 0 to 2"),
        "{error}"
    );
}
