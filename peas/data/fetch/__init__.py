"""Downloads: resumed, verified, unpacked safely, and complete in the end."""
