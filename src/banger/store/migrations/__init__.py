"""Schema migrations, one SQL file each: ``NNNN_title.sql`` brings the schema from version NNNN-1 to NNNN."""
