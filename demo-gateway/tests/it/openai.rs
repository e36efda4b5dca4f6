//! A client of OpenAI that knows nothing of the gateway but its URL.

use async_openai::{
    Client,
    config::OpenAIConfig,
    error::OpenAIError,
    types::{
        chat::{
            ChatCompletionRequestUserMessage, ChatCompletionStreamOptions,
            CreateChatCompletionRequest, CreateChatCompletionRequestArgs,
        },
        embeddings::CreateEmbeddingRequestArgs,
    },
};
use demo_backend::{Fault, Reply};
use futures_util::StreamExt;

use crate::support::{backend, config, start};

fn client(gateway: &demo_gateway::Gateway) -> Client<OpenAIConfig> {
    let config = OpenAIConfig::new()
        .with_api_base(format!("{}/v1", gateway.url()))
        .with_api_key("sk-anything");
    Client::with_config(config)
}

fn asking() -> CreateChatCompletionRequest {
    CreateChatCompletionRequestArgs::default()
        .model("gpt-4o-mini")
        .messages([ChatCompletionRequestUserMessage::from("hi").into()])
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_client_of_openai_works_unchanged() {
    let backend = backend().await;
    backend.script([Reply::text("Hello there")]);
    let gateway = start(config(&[&backend])).await;
    let client = client(&gateway);
    let answer = client.chat().create(asking()).await.unwrap();
    assert_eq!(
        answer.choices[0].message.content.as_deref(),
        Some("Hello there")
    );
    assert!(answer.usage.unwrap().total_tokens > 0);
    assert!(!client.models().list().await.unwrap().data.is_empty());
    let embedding = CreateEmbeddingRequestArgs::default()
        .model("m")
        .input("hi")
        .build()
        .unwrap();
    let embedding = client.embeddings().create(embedding).await.unwrap();
    assert!(!embedding.data[0].embedding.is_empty());
}

#[tokio::test]
async fn a_client_of_openai_streams_unchanged() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    for asks in [false, true] {
        backend.script([Reply::text("one two three")]);
        let mut request = asking();
        if asks {
            request.stream_options = Some(ChatCompletionStreamOptions {
                include_usage: Some(true),
                include_obfuscation: None,
            });
        }
        let mut stream = client(&gateway)
            .chat()
            .create_stream(request)
            .await
            .unwrap();
        let (mut text, mut usages) = (String::new(), 0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.unwrap();
            usages += usize::from(chunk.usage.is_some());
            for choice in chunk.choices {
                text += &choice.delta.content.unwrap_or_default();
            }
        }
        assert_eq!(text.trim(), "one two three");
        assert_eq!(usages, usize::from(asks));
    }
}

#[tokio::test]
async fn a_client_of_openai_understands_what_went_wrong() {
    let backend = backend().await;
    let gateway = start(config(&[&backend])).await;
    let mut wrong = asking();
    wrong.messages.clear();
    match client(&gateway).chat().create(wrong).await.unwrap_err() {
        OpenAIError::ApiError(error) => {
            let told = format!("{error:?}");
            assert!(told.contains("`messages` is empty"), "{told}");
        }
        other => panic!("{other:?}"),
    }
    backend.script([Reply::tokens(10).fault(Fault::reset(3))]);
    let mut stream = client(&gateway)
        .chat()
        .create_stream(asking())
        .await
        .unwrap();
    let (mut good, mut last) = (0, None);
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(_) => good += 1,
            Err(error) => last = Some(format!("{error:?}")),
        }
    }
    let last = last.expect("a stream that breaks off is an error for its reader");
    assert!(good > 0 && last.contains("broke"), "{last}");
}
