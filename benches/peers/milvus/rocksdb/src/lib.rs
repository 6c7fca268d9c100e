//! Empty: the archives that librocksdb-sys compiles are what the build wants.
