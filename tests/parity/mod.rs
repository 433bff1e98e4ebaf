//! Side by side with diffusers: the same inputs, the same seed, the largest difference.

mod attention_slices;
mod clip_text_model;
mod clip_tokenizer;
mod flow_match;
mod flux;
mod fused;
mod image_processor;
mod images;
mod img2img;
mod inpaint;
mod memory;
mod memory_pipelines;
mod offloading;
mod pipeline;
mod resnet;
mod safety;
mod schedulers;
mod shards;
mod single_file;
mod streams;
mod t5;
mod tracing;
mod unet;
mod unet_config;
mod unet_parts;
mod vae;
