#include "data/jpeg_check.h"

#include <cstdint>

namespace mutilde {
namespace {

constexpr int kStartOfImage = 0xD8, kEndOfImage = 0xD9, kHuffmanTables = 0xC4;

int read16(std::FILE* file) {
  const int high = std::fgetc(file);
  const int low = std::fgetc(file);
  return low == EOF ? EOF : high << 8 | low;
}

/// The next marker, EOF if there is none. Bytes on the way are skipped: padding, or, after the
/// start of a scan, its data, where FF 00 stands for a byte of FF and FF D0 ... FF D7 are restarts.
int next_marker(std::FILE* file) {
  int byte = std::fgetc(file);
  while (byte != EOF) {
    if (byte != 0xFF) {
      byte = std::fgetc(file);
      continue;
    }
    while (byte == 0xFF) byte = std::fgetc(file);
    const bool is_data = byte == 0 || (byte >= 0xD0 && byte <= 0xD7);
    if (!is_data) return byte;
    byte = std::fgetc(file);
  }
  return EOF;
}

/// One or more tables in `bytes` bytes: an id, how many codes there are of each length from 1 to
/// 16, and a symbol for each code.
bool tables_fit(std::FILE* file, int bytes) {
  while (bytes > 0) {
    uint8_t head[17] = {};
    if (std::fread(head, 1, sizeof(head), file) != sizeof(head))
      return true;  // cut short: stb sees it
    int symbols = 0;
    for (int length = 1; length <= 16; ++length) symbols += head[length];
    if (symbols > 256) return false;
    std::fseek(file, symbols, SEEK_CUR);
    bytes -= static_cast<int>(sizeof(head)) + symbols;
  }
  return true;
}

}  // namespace

bool huffman_tables_fit(std::FILE* file) {
  std::rewind(file);
  if (std::fgetc(file) != 0xFF) return true;
  std::rewind(file);
  if (next_marker(file) != kStartOfImage) return true;
  // Segments are taken as stb takes them. Where one is malformed the two
  // may part, but there stb stops.
  while (true) {
    const int marker = next_marker(file);
    if (marker == EOF || marker == kEndOfImage) return true;
    const int length = read16(file);  // of the segment, these two bytes included
    if (length < 2) return true;
    if (marker != kHuffmanTables) {
      // A scan's data follows its segment: next_marker passes it.
      std::fseek(file, length - 2, SEEK_CUR);
    } else if (!tables_fit(file, length - 2)) {
      return false;
    }
  }
}

}  // namespace mutilde
