"""Where batches come from: arrays in memory, functions of a key, iterators on the host."""

from jaxprob.learning.data._arrays import Arrays as Arrays
from jaxprob.learning.data._arrays import arrays as arrays
from jaxprob.learning.data._generated import Generated as Generated
from jaxprob.learning.data._generated import generated as generated
from jaxprob.learning.data._sources import Indexed as Indexed
from jaxprob.learning.data._sources import as_source as as_source
from jaxprob.learning.data._stream import Stream as Stream
from jaxprob.learning.data._stream import stream as stream
