"""The mathematics: scan orders, masked convolutions and the network that is built from them. Needs torch."""
