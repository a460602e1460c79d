"""Word2Vec training steps: the contract every backend implements, and the dispatch.

A step takes N tokens of running text, in order, already thinned out, and everything random about them as an input: how
far each window reaches, and the negatives. It computes the rows to be added from the weights before it, and
:func:`apply` adds them, in a fixed order. So a step can be checked against float64 number by number, its result does
not depend on the number of threads, and several processes can share one by gathering their rows before they are
applied.

- **Positives are a band**: the token at i is centre, those at i - r to i + r of its sentence are its contexts, where r
  is its ``reach``. No list of pairs is made. Windows do not cross the ends of a step.
- **Negatives are a pool** of S words that a slice of G tokens shares. Each pair meets each of them with weight K / S:
  in expectation what K fresh negatives a pair give, for S / G rows a token instead of K a pair. A pool's word that is
  the position's own token does not count.
- **The cap**: a row that more than ``cap`` pairs of one step update takes their sum scaled down to ``cap`` of them.
  Updates of one step do not see each other; without the cap those of the most frequent words add up and diverge.

In skip-gram the input vector of each context predicts the output vector of the centre, as word2vec.c and gensim have
it; in CBOW the window's sum or mean does. Sigmoids are exact, and no pair is skipped for a large score.

A backend is a module with

- ``skipgram_negative(problem, w_in, w_out, tokens, sentences, reach, pool, with_loss) -> Step``
- ``cbow_negative(problem, w_in, w_out, tokens, sentences, reach, pool, mean, divide, with_loss) -> Step``
- ``skipgram_hierarchical(problem, w_in, w_nodes, tokens, sentences, reach, paths, codes, with_loss) -> Step``
- ``cbow_hierarchical(problem, w_in, w_nodes, tokens, sentences, reach, paths, codes, mean, divide, with_loss) -> Step``
- ``apply(table, rows, rate, cap, scratch)``

with ``w_in``, ``w_out [V, d]``, ``w_nodes [V - 1, d]`` float32 (float64 for checks); ``tokens``, ``sentences [N]``
int32; ``reach [N]`` int8 or int32, 0 to w; ``pool [ceil(N / G), S]`` int32; ``paths [V, L]`` int32, ``codes [V, L]``
bool. The draws (``_random.py``) are the same bits everywhere: Philox4x32-10 by position, integer thresholds, integer
alias tables.

Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546; shared negatives: Ji et al. 2016, arXiv:1604.04661.
"""

from __future__ import annotations

from ..backends import Operation
from ._numpy import Rows, Step
from ._problem import MODELS, Word2VecProblem
from ._random import AliasTable, Stream, draws, kept_and_reach, negatives, philox, thresholds

__all__ = [
    "MODELS",
    "OPERATION",
    "AliasTable",
    "Rows",
    "Step",
    "Stream",
    "Word2VecProblem",
    "draws",
    "kept_and_reach",
    "negatives",
    "philox",
    "thresholds",
]

OPERATION = Operation("word2vec", __name__, {"numpy": "._numpy"})
