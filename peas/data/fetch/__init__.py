"""Downloads of the public data sets: resumed, checked against their checksums, unpacked safely."""
