/* Packs bytes as the Linux build packs kernels, for tests and fuzzers. */
#include <string.h>

#include <bzlib.h>
#include <lz4.h>
#include <lzma.h>
#include <lzo/lzo1x.h>
#include <zlib.h>
#include <zstd.h>

#include "tests/vmm/unit/pack.h"

static size_t pack_gzip(const uint8_t *plain, size_t len, uint8_t *out, size_t room) {
  z_stream z = {.next_in = (Bytef *)(uintptr_t)plain, .avail_in = (uInt)len, .next_out = out, .avail_out = (uInt)room};
  deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  int r = deflate(&z, Z_FINISH);
  deflateEnd(&z);
  return r == Z_STREAM_END ? z.total_out : 0;
}

static size_t pack_xz(const uint8_t *plain, size_t len, uint8_t *out, size_t room) {
  size_t pos = 0;
  return lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, NULL, plain, len, out, &pos, room) == LZMA_OK ? pos : 0;
}

static size_t pack_lzma(const uint8_t *plain, size_t len, uint8_t *out, size_t room) {
  lzma_options_lzma options;
  lzma_stream z = LZMA_STREAM_INIT;
  lzma_lzma_preset(&options, 6);
  if (lzma_alone_encoder(&z, &options) != LZMA_OK) return 0;
  z.next_in = plain;
  z.avail_in = len;
  z.next_out = out;
  z.avail_out = room;
  lzma_ret r = lzma_code(&z, LZMA_FINISH);
  size_t n = z.total_out;
  lzma_end(&z);
  return r == LZMA_STREAM_END ? n : 0;
}

static size_t pack_bzip2(const uint8_t *plain, size_t len, uint8_t *out, size_t room) {
  unsigned n = (unsigned)room;
  return BZ2_bzBuffToBuffCompress((char *)out, &n, (char *)(uintptr_t)plain, (unsigned)len, 9, 0, 0) == BZ_OK ? n : 0;
}

static size_t pack_zstd(const uint8_t *plain, size_t len, uint8_t *out, size_t room) {
  size_t n = ZSTD_compress(out, room, plain, len, 3);
  return ZSTD_isError(n) ? 0 : n;
}

/* The legacy frame, with the plain size behind it as the kernel's build appends it. */
static size_t pack_lz4(const uint8_t *plain, size_t len, uint8_t *out, size_t room) {
  int n = LZ4_compress_default((const char *)plain, (char *)out + 8, (int)len, (int)room - 12);
  const uint32_t head[2] = {0x184c2102, (uint32_t)n}, size = (uint32_t)len;
  memcpy(out, head, 8);
  memcpy(out + 8 + n, &size, 4);
  return n > 0 ? (size_t)n + 12 : 0;
}

/* lzop's header, one block, the end mark and the plain size. */
static size_t pack_lzo(const uint8_t *plain, size_t len, uint8_t *out, size_t room) {
  static const uint8_t head[38] = {0x89, 'L', 'Z', 'O', 0, 0xd, 0xa, 0x1a, 0xa, 0x10, 0x30, 0x20, 0x60, 0x09, 0x40, 1, 5};
  static uint8_t work[LZO1X_1_MEM_COMPRESS];
  lzo_uint n = 0;
  if (lzo_init() != LZO_E_OK || lzo1x_1_compress(plain, len, out + sizeof(head) + 8, &n, work) != LZO_E_OK || n >= len) return 0;
  const uint8_t sizes[8] = {(uint8_t)(len >> 24), (uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len,
                            (uint8_t)(n >> 24),   (uint8_t)(n >> 16),   (uint8_t)(n >> 8),   (uint8_t)n};
  const uint32_t size = (uint32_t)len;
  memcpy(out, head, sizeof(head));
  memcpy(out + sizeof(head), sizes, 8);
  memset(out + sizeof(head) + 8 + n, 0, 4);
  memcpy(out + sizeof(head) + 12 + n, &size, 4);
  return sizeof(head) + 16 + n;
}

const struct packer packers[PACKERS] = {{"gzip", pack_gzip}, {"xz", pack_xz},   {"lzma", pack_lzma}, {"bzip2", pack_bzip2},
                                        {"zstd", pack_zstd}, {"lz4", pack_lz4}, {"lzo", pack_lzo}};
