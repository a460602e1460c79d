"""Word2Vec from text: vocabulary, encoded text, training, vectors."""
