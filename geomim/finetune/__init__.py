"""Labels and a backbone into a model that answers: torchgeo's tasks on encoders of geomim, or of timm."""
