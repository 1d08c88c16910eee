/* Unpacks the payload of a compressed Linux kernel with the host's libraries, one row per method. */
#include <stdlib.h>
#include <string.h>

#include <bzlib.h>
#include <lz4.h>
#include <lzma.h>
#include <lzo/lzo1x.h>
#include <zlib.h>
#include <zstd.h>

#include "vmm/boot/boot_priv.h"

enum { UNPACK_LIMIT = 512 << 20, LZ4_BLOCK = 8 << 20, CHUNK = 4 << 20 };

/* Output that grows up to UNPACK_LIMIT. */
struct sink {
  uint8_t *data;
  size_t len, room;
};

static bool sink_reserve(struct sink *s, size_t more) {
  if (more > UNPACK_LIMIT - s->len) return false;
  if (s->room - s->len >= more) return true;
  size_t room = s->len + more + s->room / 2;
  if (room > UNPACK_LIMIT) room = UNPACK_LIMIT;
  uint8_t *data = realloc(s->data, room);
  if (!data) return false;
  s->data = data;
  s->room = room;
  return true;
}

static bool unpack_none(const uint8_t *in, size_t len, struct sink *out) {
  if (!sink_reserve(out, len)) return false;
  memcpy(out->data, in, len);
  out->len = len;
  return true;
}

static bool unpack_gzip(const uint8_t *in, size_t len, struct sink *out) {
  z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)len};
  if (inflateInit2(&z, 15 + 16) != Z_OK) return false; /* 16: a gzip header */
  int r = Z_OK;
  while (r == Z_OK && sink_reserve(out, CHUNK)) {
    z.next_out = out->data + out->len;
    z.avail_out = CHUNK;
    r = inflate(&z, Z_NO_FLUSH);
    out->len += CHUNK - z.avail_out;
  }
  inflateEnd(&z);
  return r == Z_STREAM_END;
}

static bool run_lzma(lzma_stream *z, const uint8_t *in, size_t len, struct sink *out) {
  lzma_ret r = LZMA_OK;
  z->next_in = in;
  z->avail_in = len;
  while (r == LZMA_OK && sink_reserve(out, CHUNK)) {
    z->next_out = out->data + out->len;
    z->avail_out = CHUNK;
    r = lzma_code(z, LZMA_RUN);
    out->len += CHUNK - z->avail_out;
    if (z->avail_in == 0 && z->avail_out == CHUNK) break;
  }
  lzma_end(z);
  return r == LZMA_STREAM_END;
}

static bool unpack_xz(const uint8_t *in, size_t len, struct sink *out) {
  lzma_stream z = LZMA_STREAM_INIT;
  return lzma_stream_decoder(&z, UNPACK_LIMIT, 0) == LZMA_OK && run_lzma(&z, in, len, out);
}

/* The .lzma payload may lack an end marker and carry an unknown size: what was made when the input ran out counts. */
static bool unpack_lzma(const uint8_t *in, size_t len, struct sink *out) {
  lzma_stream z = LZMA_STREAM_INIT;
  if (lzma_alone_decoder(&z, UNPACK_LIMIT) != LZMA_OK) return false;
  return run_lzma(&z, in, len, out) || out->len > 0;
}

static bool unpack_bzip2(const uint8_t *in, size_t len, struct sink *out) {
  bz_stream z = {.next_in = (char *)(uintptr_t)in, .avail_in = (unsigned)len};
  if (BZ2_bzDecompressInit(&z, 0, 0) != BZ_OK) return false;
  int r = BZ_OK;
  while (r == BZ_OK && sink_reserve(out, CHUNK)) {
    z.next_out = (char *)out->data + out->len;
    z.avail_out = CHUNK;
    r = BZ2_bzDecompress(&z);
    out->len += CHUNK - z.avail_out;
    if (z.avail_in == 0 && z.avail_out == CHUNK) break;
  }
  BZ2_bzDecompressEnd(&z);
  return r == BZ_STREAM_END;
}

static bool unpack_zstd(const uint8_t *in, size_t len, struct sink *out) {
  ZSTD_DStream *z = ZSTD_createDStream();
  ZSTD_inBuffer src = {in, len, 0};
  size_t r = 1;
  while (z && r != 0 && sink_reserve(out, CHUNK)) {
    ZSTD_outBuffer dst = {out->data + out->len, CHUNK, 0};
    size_t before = src.pos;
    r = ZSTD_decompressStream(z, &dst, &src);
    if (ZSTD_isError(r)) break;
    out->len += dst.pos;
    if (src.pos == before && dst.pos == 0) break; /* truncated */
  }
  ZSTD_freeDStream(z);
  return z && r == 0;
}

/* lz4's legacy frame: blocks of at most 8 MiB, each after its 32-bit length; the kernel's build appends the unpacked size, which
 * shows as a last length without a block. */
static bool unpack_lz4(const uint8_t *in, size_t len, struct sink *out) {
  size_t pos = 4;
  while (len - pos > 4) {
    uint32_t block = get32(in + pos);
    pos += 4;
    if (block == 0x184c2102) continue; /* a further frame's magic number */
    if (block == 0 || block > len - pos || !sink_reserve(out, LZ4_BLOCK)) return false;
    int n = LZ4_decompress_safe((const char *)in + pos, (char *)out->data + out->len, (int)block, LZ4_BLOCK);
    if (n < 0) return false;
    out->len += (size_t)n;
    pos += block;
  }
  return true;
}

static uint32_t get32be(const uint8_t *p) {
  return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

/* lzop's header: versions, method, flags, mode, times, name, checksum; returns its length or 0. */
static size_t lzop_header(const uint8_t *in, size_t len, uint32_t *flags) {
  enum { LZOP_FILTER = 0x800 };
  size_t pos = 9;
  if (len < 40) return 0;
  unsigned version = in[pos] << 8 | in[pos + 1];
  pos += version >= 0x940 ? 8 : 5; /* version, library version, [version needed,] method [, level] */
  *flags = get32be(in + pos);
  pos += *flags & LZOP_FILTER ? 8 : 4;
  pos += version >= 0x940 ? 12 : 8; /* mode, time [, time's high half] */
  pos += 1 + (size_t)in[pos] + 4;   /* name, checksum */
  return pos < len ? pos : 0;
}

static bool unpack_lzo(const uint8_t *in, size_t len, struct sink *out) {
  enum { ADLER_D = 1, ADLER_C = 2, CRC_D = 0x100, CRC_C = 0x200 };
  uint32_t flags;
  size_t pos = lzop_header(in, len, &flags);
  if (pos == 0 || lzo_init() != LZO_E_OK) return false;
  while (len - pos >= 8) {
    uint32_t dst_len = get32be(in + pos), src_len = get32be(in + pos + 4);
    if (dst_len == 0) return true;
    pos += 8 + 4 * (!!(flags & ADLER_D) + !!(flags & CRC_D));
    if (src_len < dst_len) pos += 4 * (!!(flags & ADLER_C) + !!(flags & CRC_C));
    if (pos > len || src_len > len - pos || src_len > dst_len || dst_len > UNPACK_LIMIT || !sink_reserve(out, dst_len))
      return false;
    lzo_uint n = dst_len;
    if (src_len == dst_len)
      memcpy(out->data + out->len, in + pos, dst_len);
    else if (lzo1x_decompress_safe(in + pos, src_len, out->data + out->len, &n, NULL) != LZO_E_OK)
      return false;
    out->len += n;
    pos += src_len;
  }
  return len - pos >= 4 && get32be(in + pos) == 0;
}

static const struct method {
  const char *name;
  uint8_t magic_len, magic[6];
  bool (*unpack)(const uint8_t *in, size_t len, struct sink *out);
} methods[] = {
    {"uncompressed", 4, {0x7f, 'E', 'L', 'F'}, unpack_none},
    {"gzip", 2, {0x1f, 0x8b}, unpack_gzip},
    {"xz", 6, {0xfd, '7', 'z', 'X', 'Z', 0}, unpack_xz},
    {"zstd", 4, {0x28, 0xb5, 0x2f, 0xfd}, unpack_zstd},
    {"lz4", 4, {0x02, 0x21, 0x4c, 0x18}, unpack_lz4},
    {"lzma", 3, {0x5d, 0x00, 0x00}, unpack_lzma},
    {"bzip2", 3, {'B', 'Z', 'h'}, unpack_bzip2},
    {"lzo", 4, {0x89, 'L', 'Z', 'O'}, unpack_lzo},
};

uint8_t *unpack_payload(const uint8_t *data, size_t len, size_t *out_len, const char **name) {
  *name = "unknown";
  for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
    if (len < 16 || memcmp(data, methods[i].magic, methods[i].magic_len) != 0) continue;
    *name = methods[i].name;
    struct sink out = {0};
    if (methods[i].unpack(data, len, &out)) {
      *out_len = out.len;
      return out.data;
    }
    free(out.data);
    return NULL;
  }
  return NULL;
}
