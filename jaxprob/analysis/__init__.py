"""What a result is worth: convergence, Monte Carlo error, diagnosis in words, model comparison, law tests."""

from jaxprob.analysis import online as online
from jaxprob.analysis._checks import Finding as Finding
from jaxprob.analysis._convergence import e_bfmi as e_bfmi
from jaxprob.analysis._convergence import effective_sample_size as effective_sample_size
from jaxprob.analysis._convergence import nested_r_hat as nested_r_hat
from jaxprob.analysis._convergence import r_hat as r_hat
from jaxprob.analysis._convergence import tail_effective_sample_size as tail_effective_sample_size
from jaxprob.analysis._diagnose import Diagnosis as Diagnosis
from jaxprob.analysis._diagnose import diagnose as diagnose
from jaxprob.analysis._laws import LawCheck as LawCheck
from jaxprob.analysis._laws import check_measure_preserving as check_measure_preserving
from jaxprob.analysis._mcse import mcse_mean as mcse_mean
from jaxprob.analysis._mcse import mcse_quantile as mcse_quantile
from jaxprob.analysis._mcse import mcse_sd as mcse_sd
from jaxprob.analysis._model_comparison import Comparison as Comparison
from jaxprob.analysis._model_comparison import Loo as Loo
from jaxprob.analysis._model_comparison import Waic as Waic
from jaxprob.analysis._model_comparison import compare as compare
from jaxprob.analysis._model_comparison import loo as loo
from jaxprob.analysis._model_comparison import waic as waic
from jaxprob.analysis._psis import Psis as Psis
from jaxprob.analysis._psis import psis as psis
from jaxprob.analysis._psis import psis_threshold as psis_threshold
from jaxprob.analysis._summary import Summary as Summary
from jaxprob.analysis._summary import summary as summary
