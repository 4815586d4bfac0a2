"""`ngpt analyze`: conditioning of matrices and of the network's function, embeddings and learned scales, of several models side by side."""
