// What stb does not check before it decodes a JPEG.
#pragma once

#include <cstdio>

namespace mutilde {

/// False if the file is a JPEG with a Huffman table of more than 256 symbols: Debian 12's stb
/// writes past its own tables for one (newer ones refuse it). True for every other file, whatever
/// is wrong with it. Reads from the beginning and leaves the position anywhere.
bool huffman_tables_fit(std::FILE* file);

}  // namespace mutilde
