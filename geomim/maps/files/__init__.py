"""Maps as files: rasters, layers of polygons, pictures."""
