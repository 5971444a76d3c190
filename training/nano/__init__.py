"""How the embedded models are made. Only this part of the project knows that they are small."""
