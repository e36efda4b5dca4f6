//! `/v1/embeddings`.

use std::sync::Arc;

use axum::{Extension, body::Body, extract::State};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::Response;

use super::{ThisCall, answer, completions::prompts, read};
use crate::{
    api::openai::{Embedding, EmbeddingRequest, Embeddings, Encoding, Usage, Vector},
    errors::{Failure, json},
    instance::Instance,
    simulation::embed,
    ticket::Call,
};

/// Of `text-embedding-3-small`, and of the largest model.
const DIMENSIONS: u32 = 1536;
const MAX_DIMENSIONS: u32 = 3072;

pub(super) async fn embeddings(
    State(instance): State<Arc<Instance>>,
    Extension(call): ThisCall,
) -> Response<Body> {
    answer(embed_texts(&instance, &call).await, "/v1/embeddings")
}

async fn embed_texts(instance: &Arc<Instance>, call: &Call) -> Result<Response<Body>, Failure> {
    let request: EmbeddingRequest = read(call)?;
    let dimensions = request.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        let what = format!("{dimensions} is not from 1 to {MAX_DIMENSIONS}");
        return Err(Failure::field("dimensions", what));
    }
    let prompts = prompts("input", request.input)?;
    if let Some(index) = prompts.iter().position(|prompt| prompt.text.is_empty()) {
        return Err(Failure::field("input", format!("text {index} is empty")));
    }
    let _serving = instance.serve(&prompts).await?;
    let encoding = request.encoding_format.unwrap_or_default();
    let data = prompts.iter().zip(0..).map(|(prompt, index)| Embedding {
        object: "embedding".to_owned(),
        index,
        embedding: encode(&embed(&prompt.text, dimensions), encoding),
    });
    let tokens = prompts.iter().map(|prompt| prompt.tokens);
    let tokens = tokens.fold(0, u32::saturating_add);
    Ok(json(&Embeddings {
        object: "list".to_owned(),
        data: data.collect(),
        model: request.model,
        usage: Usage {
            prompt_tokens: tokens,
            total_tokens: tokens,
            ..Usage::default()
        },
    }))
}

fn encode(vector: &[f32], encoding: Encoding) -> Vector {
    match encoding {
        Encoding::Float => Vector::Floats(vector.to_vec()),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    }
}
