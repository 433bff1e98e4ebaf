//! The tokenizers, one class each.

use crate::bridge::PyTensor;
use crate::errors::OrRaise;
use pyo3::prelude::*;
use std::path::PathBuf;
use tch_diffusers::models::text_encoders;

/// The parts of a tokenizer's class that are the same for all.
macro_rules! tokenizer_class {
    ($(#[$doc:meta])* $name:ident, { $($methods:tt)* }) => {
        $(#[$doc])*
        #[pyclass(frozen)]
        pub(crate) struct $name(text_encoders::$name);

        #[pymethods]
        impl $name {
            /// Reads the tokenizer in a folder.
            #[staticmethod]
            fn load(folder: PathBuf) -> PyResult<Self> {
                text_encoders::$name::from_pretrained(folder).or_raise().map(Self)
            }

            /// Copies the tokenizer's files to a folder.
            fn save(&self, folder: PathBuf) -> PyResult<()> {
                self.0.save_pretrained(folder).or_raise()
            }

            /// The number of tokens.
            #[getter]
            fn vocab_size(&self) -> usize {
                self.0.vocab_size()
            }

            /// The numbers of a batch of texts, padded and cut to `max_length`; which of them are text; and what was cut.
            fn encode_batch(
                &self,
                texts: Vec<String>,
                max_length: usize,
            ) -> PyResult<(PyTensor, PyTensor, Option<Vec<String>>)> {
                let inputs = self.0.encode_batch(&texts, max_length).or_raise()?;
                Ok((PyTensor(inputs.input_ids), PyTensor(inputs.attention_mask), inputs.removed_text))
            }

            /// The numbers of a text, neither padded nor cut.
            fn encode_untruncated(&self, text: &str) -> PyResult<Vec<i64>> {
                self.0.encode_untruncated(text).or_raise()
            }

            /// The number of a token.
            fn token_to_id(&self, token: &str) -> Option<i64> {
                self.0.token_to_id(token)
            }

            /// The text of numbers.
            fn decode(&self, ids: Vec<i64>) -> PyResult<String> {
                self.0.decode(&ids).or_raise()
            }

            $($methods)*
        }
    };
}

tokenizer_class!(
    /// CLIP's tokenizer.
    CLIPTokenizer,
    {
        /// The longest sequence, in tokens.
        #[getter]
        fn model_max_length(&self) -> PyResult<usize> {
            self.0.model_max_length().or_raise()
        }

        /// Beginning, end and padding: token and number of each, by the name of its role.
        fn special_tokens(&self) -> Vec<(&'static str, String, i64)> {
            let own = &self.0;
            vec![
                ("bos", own.bos_token().into(), own.bos_token_id()),
                ("eos", own.eos_token().into(), own.eos_token_id()),
                ("pad", own.pad_token().into(), own.pad_token_id()),
            ]
        }
    }
);
tokenizer_class!(
    /// T5's tokenizer.
    T5Tokenizer,
    {
        /// The longest sequence, in tokens, if a file says.
        #[getter]
        fn model_max_length(&self) -> Option<usize> {
            self.0.model_max_length()
        }

        /// End and padding: token and number of each, by the name of its role.
        fn special_tokens(&self) -> Vec<(&'static str, String, i64)> {
            let own = &self.0;
            vec![
                ("eos", own.eos_token().into(), own.eos_token_id()),
                ("pad", own.pad_token().into(), own.pad_token_id()),
            ]
        }
    }
);
