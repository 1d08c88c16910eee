/* A small builder of AML, the byte code of ACPI's DSDT.
 *
 * Manual: ACPI 6.4, chapter 20 (encoding) and 6.4 (resource data types). */
#include <stdlib.h>
#include <string.h>

#include "vmm/acpi/aml.h"

/* Opcodes, ACPI 6.4, table 20.2. */
enum {
  OP_ZERO = 0x00,
  OP_ONE = 0x01,
  OP_NAME = 0x08,
  OP_BYTE = 0x0a,
  OP_WORD = 0x0b,
  OP_DWORD = 0x0c,
  OP_STRING = 0x0d,
  OP_QWORD = 0x0e,
  OP_SCOPE = 0x10,
  OP_BUFFER = 0x11,
  OP_PACKAGE = 0x12,
  OP_VAR_PACKAGE = 0x13,
  OP_METHOD = 0x14,
  OP_EXT = 0x5b,
  OP_EXT_DEVICE = 0x82,
};

/* Packages get a length of this many bytes always: it is not known when they begin (20.2.4: up to 2^28). */
enum { PKG_LENGTH_BYTES = 4 };

void aml_free(struct aml *a) {
  free(a->data);
  *a = (struct aml){0};
}

void aml_bytes(struct aml *a, const void *data, size_t len) {
  if (a->failed) return;
  if (a->room - a->len < len) {
    size_t room = (a->len + len) * 2 + 256;
    uint8_t *p = realloc(a->data, room);
    if (!p) {
      a->failed = true;
      return;
    }
    a->data = p;
    a->room = room;
  }
  memcpy(a->data + a->len, data, len);
  a->len += len;
}

void aml_byte(struct aml *a, uint8_t b) {
  aml_bytes(a, &b, 1);
}

static void op_with(struct aml *a, uint8_t op, uint64_t value, size_t len) {
  aml_byte(a, op);
  aml_bytes(a, &value, len); /* little endian, as the host */
}

void aml_int(struct aml *a, uint64_t value) {
  if (value <= 1)
    aml_byte(a, value ? OP_ONE : OP_ZERO);
  else if (value <= UINT8_MAX)
    op_with(a, OP_BYTE, value, 1);
  else if (value <= UINT16_MAX)
    op_with(a, OP_WORD, value, 2);
  else if (value <= UINT32_MAX)
    op_with(a, OP_DWORD, value, 4);
  else
    op_with(a, OP_QWORD, value, 8);
}

void aml_string(struct aml *a, const char *text) {
  aml_byte(a, OP_STRING);
  aml_bytes(a, text, strlen(text) + 1);
}

static unsigned hex(char c) {
  return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10);
}

/* Three letters of 5 bits, four hexadecimal digits, big endian (ACPI 6.4, 19.6.36). */
void aml_eisaid(struct aml *a, const char *id) {
  unsigned letters = (id[0] - 0x40u) << 10 | (id[1] - 0x40u) << 5 | (id[2] - 0x40u);
  uint8_t be[4] = {(uint8_t)(letters >> 8), (uint8_t)letters, (uint8_t)(hex(id[3]) << 4 | hex(id[4])),
                   (uint8_t)(hex(id[5]) << 4 | hex(id[6]))};
  aml_byte(a, OP_DWORD);
  aml_bytes(a, be, 4);
}

void aml_namestring(struct aml *a, const char *path) {
  if (*path == '\\') aml_byte(a, (uint8_t)*path++);
  char seg[4] = {'_', '_', '_', '_'}; /* 20.2.2: short names are padded with underscores */
  memcpy(seg, path, strnlen(path, 4));
  aml_bytes(a, seg, 4);
}

void aml_name(struct aml *a, const char *name4) {
  aml_byte(a, OP_NAME);
  aml_namestring(a, name4);
}

void aml_name_int(struct aml *a, const char *name4, uint64_t value) {
  aml_name(a, name4);
  aml_int(a, value);
}

void aml_name_eisaid(struct aml *a, const char *name4, const char *id) {
  aml_name(a, name4);
  aml_eisaid(a, id);
}

static size_t begin(struct aml *a) {
  static const uint8_t gap[PKG_LENGTH_BYTES];
  aml_bytes(a, gap, sizeof(gap));
  return a->len;
}

size_t aml_scope(struct aml *a, const char *path) {
  aml_byte(a, OP_SCOPE);
  size_t mark = begin(a);
  aml_namestring(a, path);
  return mark;
}

size_t aml_device(struct aml *a, const char *name4) {
  aml_byte(a, OP_EXT);
  aml_byte(a, OP_EXT_DEVICE);
  size_t mark = begin(a);
  aml_namestring(a, name4);
  return mark;
}

size_t aml_package(struct aml *a, uint8_t count) {
  aml_byte(a, OP_PACKAGE);
  size_t mark = begin(a);
  aml_byte(a, count);
  return mark;
}

size_t aml_var_package(struct aml *a, unsigned count) {
  aml_byte(a, OP_VAR_PACKAGE);
  size_t mark = begin(a);
  aml_int(a, count);
  return mark;
}

size_t aml_method(struct aml *a, const char *name4, unsigned args) {
  aml_byte(a, OP_METHOD);
  size_t mark = begin(a);
  aml_namestring(a, name4);
  aml_byte(a, (uint8_t)args);
  return mark;
}

/* 20.2.4: bits 7-6 of the lead byte count the bytes that follow, its low 4 bits are the lowest; the length includes itself. */
void aml_end(struct aml *a, size_t mark) {
  if (a->failed) return;
  size_t len = a->len - mark + PKG_LENGTH_BYTES;
  uint8_t *p = a->data + mark - PKG_LENGTH_BYTES;
  p[0] = (uint8_t)((PKG_LENGTH_BYTES - 1) << 6 | (len & 0xf));
  for (int i = 1; i < PKG_LENGTH_BYTES; i++) p[i] = (uint8_t)(len >> (4 + 8 * (i - 1)));
}

struct aml_crs aml_crs_begin(struct aml *a, const char *name4) {
  struct aml_crs crs;
  aml_name(a, name4);
  aml_byte(a, OP_BUFFER);
  crs.package = begin(a);
  op_with(a, OP_WORD, 0, 2);
  crs.size_at = a->len - 2;
  crs.start = a->len;
  return crs;
}

void aml_crs_end(struct aml *a, struct aml_crs crs) {
  static const uint8_t end_tag[] = {0x79, 0}; /* 6.4.2.9; checksum 0: not checked */
  aml_bytes(a, end_tag, sizeof(end_tag));
  if (a->failed) return;
  size_t size = a->len - crs.start;
  a->data[crs.size_at] = (uint8_t)size;
  a->data[crs.size_at + 1] = (uint8_t)(size >> 8);
  aml_end(a, crs.package);
}

/* 6.4.2.5, I/O port descriptor: decodes 16 bits. */
void aml_crs_io(struct aml *a, uint16_t base, uint8_t len) {
  uint8_t d[] = {0x47, 1, (uint8_t)base, (uint8_t)(base >> 8), (uint8_t)base, (uint8_t)(base >> 8), 1, len};
  aml_bytes(a, d, sizeof(d));
}

/* 6.4.2.1, IRQ descriptor without flags: edge-triggered, active high, exclusive. */
void aml_crs_irq(struct aml *a, unsigned irq) {
  uint16_t mask = (uint16_t)(1u << irq);
  uint8_t d[] = {0x22, (uint8_t)mask, (uint8_t)(mask >> 8)};
  aml_bytes(a, d, sizeof(d));
}

/* 6.4.3.4, 32-bit fixed memory range: read and write. */
void aml_crs_memory32(struct aml *a, uint32_t base, uint32_t len) {
  uint8_t head[] = {0x86, 9, 0, 1};
  aml_bytes(a, head, sizeof(head));
  aml_bytes(a, &base, 4);
  aml_bytes(a, &len, 4);
}

/* 6.4.3.5: kinds of address space and the sizes of their descriptors. */
enum { SPACE_MEMORY = 0, SPACE_IO = 1, SPACE_BUS = 2 };
enum { DESC_WORD = 0x88, DESC_DWORD = 0x87, DESC_QWORD = 0x8a };

/* Producer, positive decode, minimum and maximum fixed; granularity 0, translation 0. */
static void address_space(struct aml *a, uint8_t desc, unsigned width, uint8_t space, uint8_t specific, uint64_t first,
                          uint64_t last) {
  const uint64_t fields[] = {0, first, last, 0, last - first + 1};
  uint16_t len = (uint16_t)(3 + 5 * width);
  uint8_t head[] = {desc, (uint8_t)len, (uint8_t)(len >> 8), space, 0x0c, specific};
  aml_bytes(a, head, sizeof(head));
  for (size_t i = 0; i < 5; i++) aml_bytes(a, &fields[i], width);
}

void aml_crs_bus(struct aml *a, uint16_t first, uint16_t last) {
  address_space(a, DESC_WORD, 2, SPACE_BUS, 0, first, last);
}
void aml_crs_io_window(struct aml *a, uint16_t first, uint16_t last) {
  address_space(a, DESC_WORD, 2, SPACE_IO, 3, first, last);
}
void aml_crs_memory32_window(struct aml *a, uint32_t first, uint32_t last) {
  address_space(a, DESC_DWORD, 4, SPACE_MEMORY, 1, first, last);
}
void aml_crs_memory64_window(struct aml *a, uint64_t first, uint64_t last) {
  address_space(a, DESC_QWORD, 8, SPACE_MEMORY, 1, first, last);
}
