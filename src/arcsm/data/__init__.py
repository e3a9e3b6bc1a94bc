"""Data sets: two-dimensional toys, tables and images."""

from arcsm.data.frames import FrameFile, frame_parts, read_frame
from arcsm.data.image_sets import digits, mnist, read_idx, torchvision_images
from arcsm.data.images import IMAGE_SUFFIXES, image_grid, read_images, save_images
from arcsm.data.numpy_files import read_array
from arcsm.data.pixels import ImageSet, scale_images, stretch_images, unscale_images
from arcsm.data.read_options import ReadOptions
from arcsm.data.row_samples import SampledFile, sample_rows
from arcsm.data.streams import RowStream, blocks_of
from arcsm.data.table import (
    TABLE_SUFFIXES,
    Table,
    frame_writer,
    read_table,
    write_frame,
    write_table,
)
from arcsm.data.toys import TOYS, Toy, toy

__all__ = [
    "IMAGE_SUFFIXES",
    "TABLE_SUFFIXES",
    "TOYS",
    "FrameFile",
    "ImageSet",
    "ReadOptions",
    "RowStream",
    "SampledFile",
    "Table",
    "Toy",
    "blocks_of",
    "digits",
    "frame_parts",
    "frame_writer",
    "image_grid",
    "mnist",
    "read_array",
    "read_frame",
    "read_idx",
    "read_images",
    "read_table",
    "sample_rows",
    "save_images",
    "scale_images",
    "stretch_images",
    "torchvision_images",
    "toy",
    "unscale_images",
    "write_frame",
    "write_table",
]
