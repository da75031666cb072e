from .access.account import access_status as access_status
from .access.account import login as login
from .access.account import request_stimulus_access as request_stimulus_access
from .access.gate import current_terms_version as current_terms_version
from .access.licence import accept_license as accept_license
from .betas.ceilings import normalized_score as normalized_score
from .betas.load import load_betas as load_betas
from .betas.rows import select_trials as select_trials
from .betas.rows import shared_labels as shared_labels
from .cache.data_dir import dataset_initialize as dataset_initialize
from .cache.data_dir import get_data_dir as get_data_dir
from .doctor import doctor as doctor
from .exceptions import LaionFmriError as LaionFmriError
from .fetchers.betas import fetch_laion_betas as fetch_laion_betas
from .fetchers.betas import pack_betas as pack_betas
from .fetchers.discovery import describe as describe
from .fetchers.discovery import get_rois as get_rois
from .fetchers.discovery import get_subjects as get_subjects
from .fetchers.discovery import inspect_bucket as inspect_bucket
from .fetchers.fmri import fetch_laion_fmri as fetch_laion_fmri
from .fetchers.fmri import fetch_laion_fmri_ids as fetch_laion_fmri_ids
from .fetchers.status import status as status
from .fetchers.stimuli import fetch_laion_captions as fetch_laion_captions
from .fetchers.stimuli import fetch_laion_embeddings as fetch_laion_embeddings
from .fetchers.stimuli import (
    fetch_laion_segmentations as fetch_laion_segmentations,
)
from .fetchers.stimuli import fetch_laion_stimuli as fetch_laion_stimuli
from .fetchers.stimuli import (
    fetch_laion_stimulus_metadata as fetch_laion_stimulus_metadata,
)
from .fetchers.surfaces import fetch_laion_surfaces as fetch_laion_surfaces
from .fetchers.verify import verify_cache as verify_cache
from .query.filters import ResultFilter as ResultFilter
from .query.values import Contains as Contains
from .query.values import GreaterOrEqual as GreaterOrEqual
from .query.values import GreaterThan as GreaterThan
from .query.values import IsIn as IsIn
from .query.values import IsNull as IsNull
from .query.values import LessOrEqual as LessOrEqual
from .query.values import LessThan as LessThan
from .query.values import NotContains as NotContains
from .query.values import NotEqual as NotEqual
from .query.values import NotIn as NotIn
from .query.values import NotNull as NotNull
from .query.values import Pattern as Pattern
from .report.figures import plot_noise_ceiling as plot_noise_ceiling
from .report.figures import plot_rois as plot_rois
from .report.figures import plot_trials as plot_trials
from .report.page import make_report as make_report
from .splits import fetch_laion_splits as fetch_laion_splits
from .stimuli.align import align as align
from .stimuli.archive import load_stimuli as load_stimuli
from .stimuli.batches import LaionDataset as LaionDataset
from .surfaces.mni import project_to_mni as project_to_mni
from .surfaces.projection import project_to_surface as project_to_surface

__version__: str
