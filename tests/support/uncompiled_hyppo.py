"""hyppo's independent statistics without numba: compiling them takes half a minute, running them a millisecond."""

import numba

_compiles = numba.config.DISABLE_JIT
numba.config.DISABLE_JIT = True
try:
    from hyppo.independence import Dcorr, Hsic
    from hyppo.ksample import MMD
finally:
    numba.config.DISABLE_JIT = _compiles

__all__ = ["MMD", "Dcorr", "Hsic"]
