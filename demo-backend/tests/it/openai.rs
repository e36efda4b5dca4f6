use base64::{Engine, engine::general_purpose::STANDARD};
use demo_backend::{
    MockBackend,
    api::openai::{Chat, Completion, Finish},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{events, get, post};

async fn chat(backend: &MockBackend, body: Value) -> Chat {
    let answer = post(backend, "/v1/chat/completions", body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    serde_json::from_slice(&answer.body).unwrap()
}

fn hello(more: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let mut body = json!({"model": "gpt-4o", "messages": messages});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_chat_has_the_shape_of_openai() {
    let backend = MockBackend::builder().tokens(9).start().await.unwrap();
    let body = hello(json!({})).to_string();
    let answer = post(&backend, "/v1/chat/completions", body).await.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "gpt-4o");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(
        answer
            .as_object()
            .unwrap()
            .contains_key("system_fingerprint")
    );
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(
        choice["message"]["content"]
            .as_str()
            .unwrap()
            .split(' ')
            .count(),
        9
    );
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 9);
    // Two of the text, three of its message, three of the conversation.
    assert_eq!(usage["prompt_tokens"], 8);
    assert_eq!(usage["total_tokens"], 17);
}

#[tokio::test]
async fn several_answers_differ_and_count_together() {
    let backend = MockBackend::builder().tokens(4).start().await.unwrap();
    let chat = chat(&backend, hello(json!({"n": 3}))).await;
    let texts: Vec<_> = chat
        .choices
        .iter()
        .map(|choice| choice.message.as_ref().unwrap().content.clone().unwrap())
        .collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    assert_eq!(chat.usage.unwrap().completion_tokens, Some(12));
    assert_eq!(chat.choices[2].index, 2);
}

#[tokio::test]
async fn a_limit_is_told_from_an_end() {
    let backend = MockBackend::builder().tokens(10).start().await.unwrap();
    for (body, finish, tokens) in [
        (json!({"max_tokens": 4}), Finish::Length, 4),
        (
            json!({"max_completion_tokens": 3, "max_tokens": 9}),
            Finish::Length,
            3,
        ),
        (json!({"max_tokens": 10}), Finish::Stop, 10),
        (json!({}), Finish::Stop, 10),
    ] {
        let chat = chat(&backend, hello(body)).await;
        assert_eq!(chat.choices[0].finish_reason, Some(finish));
        assert_eq!(chat.usage.unwrap().completion_tokens, Some(tokens));
    }
}

#[tokio::test]
async fn a_seed_of_the_request_fixes_its_answer() {
    let backend = MockBackend::builder().start().await.unwrap();
    let mut texts = Vec::new();
    for seed in [5, 6, 5] {
        let chat = chat(&backend, hello(json!({"seed": seed}))).await;
        texts.push(chat.choices[0].message.clone());
    }
    assert_eq!(texts[0], texts[2]);
    assert_ne!(texts[0], texts[1]);
}

#[tokio::test]
async fn what_openai_clients_send_beside_the_text_is_read_over() {
    let backend = MockBackend::builder().start().await.unwrap();
    let body = json!({
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "name": "me", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
            ]},
            {"role": "assistant", "content": null, "tool_calls": []},
        ],
        "tools": [], "response_format": {"type": "text"}, "stream": null, "stream_options": null, "n": null,
        "max_tokens": null, "stop": ["\n"], "logit_bias": {}, "top_p": 1,
    });
    assert_eq!(chat(&backend, body).await.choices.len(), 1);
}

#[tokio::test]
async fn completions_answer_each_prompt() {
    let backend = MockBackend::builder().tokens(30).start().await.unwrap();
    let ask = async |prompt: Value| -> Completion {
        let body = json!({"model": "m", "prompt": prompt, "n": 2}).to_string();
        let answer = post(&backend, "/v1/completions", body).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    };
    let one = ask(json!("Once upon a time")).await;
    assert_eq!(one.object, "text_completion");
    assert_eq!(one.choices.len(), 2);
    assert_eq!(one.usage.unwrap().prompt_tokens, 4);
    assert_eq!(
        one.choices[0].finish_reason,
        Some(Finish::Length),
        "16 is the default"
    );
    assert_eq!(one.usage.unwrap().completion_tokens, Some(32));
    let two = ask(json!(["a", "b"])).await;
    let indices: Vec<_> = two.choices.iter().map(|choice| choice.index).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(ask(json!([1, 2, 3])).await.usage.unwrap().prompt_tokens, 3);
    assert_eq!(ask(json!([[1, 2], [3]])).await.choices.len(), 4);
}

#[tokio::test]
async fn streamed_completions_name_their_choices() {
    let backend = MockBackend::builder().tokens(3).start().await.unwrap();
    let body = json!({"model": "m", "prompt": ["a", "b"], "stream": true}).to_string();
    let answer = post(&backend, "/v1/completions", body).await;
    let mut texts = [String::new(), String::new()];
    let (done, chunks) = events(answer.text())
        .split_last()
        .map(|(d, c)| (*d, c.to_vec()))
        .unwrap();
    assert_eq!(done, "[DONE]");
    for chunk in chunks {
        let chunk: Completion = serde_json::from_str(chunk).unwrap();
        assert!(chunk.id.starts_with("cmpl-") && chunk.usage.is_none());
        for choice in chunk.choices {
            texts[choice.index as usize].push_str(&choice.text);
        }
    }
    assert!(
        texts.iter().all(|text| text.split(' ').count() == 3),
        "{texts:?}"
    );
    assert_ne!(texts[0], texts[1]);
}

#[tokio::test]
async fn embeddings_are_of_the_length_and_encoding_that_was_asked_for() {
    let backend = MockBackend::builder().start().await.unwrap();
    let ask = async |body: Value| {
        post(&backend, "/v1/embeddings", body.to_string())
            .await
            .json()
    };
    let input = json!(["red apple", "green apple"]);
    let floats = ask(json!({"model": "e", "input": input, "dimensions": 64})).await;
    assert_eq!(floats["object"], "list");
    assert_eq!(floats["data"][1]["object"], "embedding");
    assert_eq!(floats["data"][1]["index"], 1);
    assert_eq!(floats["usage"]["prompt_tokens"], 6);
    assert!(floats["usage"].get("completion_tokens").is_none());
    let vector = |value: &Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
    let first = vector(&floats["data"][0]["embedding"]);
    assert_eq!(first.len(), 64);
    assert!((first.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);

    let body = json!({"model": "e", "input": input, "dimensions": 64, "encoding_format": "base64"});
    let base64 = ask(body).await;
    let bytes = STANDARD
        .decode(base64["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let (chunks, _) = bytes.as_chunks::<4>();
    let decoded: Vec<_> = chunks
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    assert_eq!(decoded, first);

    let usual = ask(json!({"model": "e", "input": "x"})).await;
    assert_eq!(vector(&usual["data"][0]["embedding"]).len(), 1536);
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let backend = MockBackend::builder().start().await.unwrap();
    let list = get(&backend, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let first = &list["data"][0];
    assert_eq!(first["object"], "model");
    let path = format!("/v1/models/{}", first["id"].as_str().unwrap());
    assert_eq!(get(&backend, &path).await.json(), *first);
    let missing = get(&backend, "/v1/models/nobody").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.json()["error"]["code"], "model_not_found");
}
