# Read by llama.cpp's CMake project: its command-line helpers are not needed, only the library.
set(LLAMA_BUILD_COMMON OFF)
