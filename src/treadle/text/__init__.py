"""Text: data, models and learners."""

from treadle.text.awd_lstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_lm_config
from treadle.text.blocks import TextBlock
from treadle.text.classifier import (
    PoolingLinearClassifier,
    SentenceEncoder,
    get_text_classifier,
)
from treadle.text.dataloaders import TextDataLoaders
from treadle.text.decoder import LinearDecoder, SequentialRNN, get_language_model
from treadle.text.dropout import EmbeddingDropout, RNNDropout, WeightDropLSTM
from treadle.text.fields import FieldReader
from treadle.text.files import get_text_files
from treadle.text.generate import decode_spec_tokens
from treadle.text.learner import (
    LMLearner,
    TextLearner,
    language_model_learner,
    text_classifier_learner,
)
from treadle.text.lm_loader import LMLoader
from treadle.text.numericalize import Numericalize, make_vocab
from treadle.text.recurrent import PlainRNN
from treadle.text.scores import TokenCrossEntropy
from treadle.text.sorted_loader import SortedLoader
from treadle.text.tokenize import SpaceTokenizer, Tokenizer
from treadle.text.tokenize_bpe import BPETokenizer
from treadle.text.tokenize_words import WordTokenizer, fix_html
from treadle.text.transformer import CausalTransformer

__all__ = [
    "AWD_LSTM",
    "BPETokenizer",
    "CausalTransformer",
    "EmbeddingDropout",
    "FieldReader",
    "LMLearner",
    "LMLoader",
    "LinearDecoder",
    "Numericalize",
    "PlainRNN",
    "PoolingLinearClassifier",
    "RNNDropout",
    "SentenceEncoder",
    "SequentialRNN",
    "SortedLoader",
    "SpaceTokenizer",
    "TextBlock",
    "TextDataLoaders",
    "TextLearner",
    "TokenCrossEntropy",
    "Tokenizer",
    "WeightDropLSTM",
    "WordTokenizer",
    "awd_lstm_clas_config",
    "awd_lstm_lm_config",
    "decode_spec_tokens",
    "fix_html",
    "get_language_model",
    "get_text_classifier",
    "get_text_files",
    "language_model_learner",
    "make_vocab",
    "text_classifier_learner",
]
