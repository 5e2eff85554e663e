"""Other patients out of a CT: how it may differ, the warp that makes it so, and the sample on the grid."""
