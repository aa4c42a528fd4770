"""Text: models and learners."""

from treadle.text.awd_lstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_lm_config
from treadle.text.classifier import (
    PoolingLinearClassifier,
    SentenceEncoder,
    get_text_classifier,
)
from treadle.text.decoder import LinearDecoder, SequentialRNN, get_language_model
from treadle.text.dropout import EmbeddingDropout, RNNDropout, WeightDropLSTM
from treadle.text.generate import decode_spec_tokens
from treadle.text.learner import (
    LMLearner,
    TextLearner,
    language_model_learner,
    text_classifier_learner,
)
from treadle.text.recurrent import PlainRNN
from treadle.text.scores import TokenCrossEntropy
from treadle.text.transformer import CausalTransformer

__all__ = [
    "AWD_LSTM",
    "CausalTransformer",
    "EmbeddingDropout",
    "LMLearner",
    "LinearDecoder",
    "PlainRNN",
    "PoolingLinearClassifier",
    "RNNDropout",
    "SentenceEncoder",
    "SequentialRNN",
    "TextLearner",
    "TokenCrossEntropy",
    "WeightDropLSTM",
    "awd_lstm_clas_config",
    "awd_lstm_lm_config",
    "decode_spec_tokens",
    "get_language_model",
    "get_text_classifier",
    "language_model_learner",
    "text_classifier_learner",
]
