"""What the package knows of neuron layers; one file for each library it serves."""

from dynvision_snn.adapters.base import (
    Adapter as Adapter,
)
from dynvision_snn.adapters.base import (
    Call as Call,
)
from dynvision_snn.adapters.base import (
    InnerSynapses as InnerSynapses,
)
from dynvision_snn.adapters.base import (
    LayerTraits as LayerTraits,
)
from dynvision_snn.adapters.base import (
    Reading as Reading,
)
from dynvision_snn.adapters.base import (
    Retimed as Retimed,
)
from dynvision_snn.adapters.base import (
    Role as Role,
)
from dynvision_snn.adapters.base import (
    TimeConstant as TimeConstant,
)
from dynvision_snn.adapters.finding import (
    Adapters as Adapters,
)
from dynvision_snn.adapters.finding import (
    Layer as Layer,
)
from dynvision_snn.adapters.finding import (
    integration_problems as integration_problems,
)
