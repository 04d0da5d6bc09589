"""Plain rows and arrays in; tables, figures and files out. Nothing here knows a model."""

from dynvision_snn.report.figure import ModelStyle as ModelStyle
from dynvision_snn.report.figure import model_styles as model_styles
from dynvision_snn.report.figure import save_figure as save_figure
from dynvision_snn.report.files import check_free as check_free
from dynvision_snn.report.files import write_text as write_text
from dynvision_snn.report.files import writing_file as writing_file
from dynvision_snn.report.files import writing_folder as writing_folder
from dynvision_snn.report.plots import accuracy_over_time as accuracy_over_time
from dynvision_snn.report.plots import energy_by_layer as energy_by_layer
from dynvision_snn.report.tables import Column as Column
from dynvision_snn.report.tables import Grid as Grid
from dynvision_snn.report.tables import Noted as Noted
from dynvision_snn.report.tables import lay_out as lay_out
from dynvision_snn.report.tables import terminal_table as terminal_table
from dynvision_snn.report.tables import to_text as to_text
