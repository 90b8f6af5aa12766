"""The numbers of a comparison with their uncertainty: means, differences, rankings, trends, sample sizes."""
