"""Word2Vec from text: vocabulary, encoded text, training, vectors."""

from ._progress import Progress
from .corpus import Corpus
from .huffman import HuffmanTree
from .options import Options
from .trainer import Word2Vec
from .vectors import WordVectors
from .vocabulary import Vocabulary

__all__ = ["Corpus", "HuffmanTree", "Options", "Progress", "Vocabulary", "Word2Vec", "WordVectors"]
