/* Linux bzImage kernels, by the 64-bit or 32-bit boot protocol; the payload is unpacked here where the host can.
 *
 * Manual: Linux, Documentation/arch/x86/boot.rst (protocol 2.15); section names in quotes below. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/boot/boot_priv.h"

/* Offsets in the file of the fields of the real-mode kernel header, "Details of Header Fields". */
enum {
  HDR_SETUP_SECTS = 0x1f1,
  HDR_SYSSIZE = 0x1f4,
  HDR_BOOT_FLAG = 0x1fe,
  HDR_MAGIC = 0x202,
  HDR_VERSION = 0x206,
  HDR_KERNEL_VERSION = 0x20e,
  HDR_LOADFLAGS = 0x211,
  HDR_CODE32_START = 0x214,
  HDR_INITRD_MAX = 0x22c,
  HDR_RELOCATABLE = 0x234,
  HDR_XLOADFLAGS = 0x236,
  HDR_CMDLINE_SIZE = 0x238,
  HDR_PAYLOAD_OFFSET = 0x248,
  HDR_PAYLOAD_LENGTH = 0x24c,
  HDR_PREF_ADDRESS = 0x258,
  HDR_INIT_SIZE = 0x260,
};
enum { LOADED_HIGH = 1, XLF_KERNEL_64 = 1, ENTRY64 = 0x200 };

static bool bz_probe(const uint8_t *data, size_t len) {
  return len >= 0x206 && get16(data + HDR_BOOT_FLAG) == 0xaa55 && memcmp(data + HDR_MAGIC, "HdrS", 4) == 0;
}

/* The version string of the kernel, which HDR_KERNEL_VERSION points to (less 0x200). */
static void copy_version(const uint8_t *data, size_t len, char *out, size_t out_len) {
  size_t at = (size_t)get16(data + HDR_KERNEL_VERSION) + 0x200, n = 0;
  if (get16(data + HDR_KERNEL_VERSION))
    while (n + 1 < out_len && at + n < len && data[at + n] > ' ' && data[at + n] < 0x7f) out[n] = (char)data[at + n], n++;
  out[n] = 0;
}

/* Reads the setup header; fields that an old protocol lacks get the values the document gives them. */
static int read_header(struct linux_header *h, const uint8_t *data, size_t len, char *err) {
  if (len < 0x268) return boot_fail(err, "the bzImage is truncated: its setup header is incomplete");
  *h = (struct linux_header){.version = get16(data + HDR_VERSION)};
  if (h->version < 0x202)
    return boot_fail(err, "the bzImage speaks boot protocol %u.%02u; 2.02 or later is needed", h->version >> 8,
                     h->version & 0xff);
  if (!(data[HDR_LOADFLAGS] & LOADED_HIGH))
    return boot_fail(err, "the kernel is a zImage, which loads below 1 MiB; only bzImage is supported");
  unsigned sects = data[HDR_SETUP_SECTS] ? data[HDR_SETUP_SECTS] : 4;
  h->code_offset = ((size_t)sects + 1) * 512;
  uint64_t announced = (uint64_t)(h->version >= 0x204 ? get32(data + HDR_SYSSIZE) : get16(data + HDR_SYSSIZE)) * 16;
  if (h->code_offset >= len) return boot_fail(err, "the bzImage is truncated: it ends inside its setup code");
  h->code_len = len - h->code_offset;
  /* syssize is rounded up to 16 bytes, so a whole file may be up to 15 bytes shorter. */
  if (h->code_len + 15 < announced)
    return boot_fail(err, "the bzImage is truncated: its header announces %llu bytes, the file has %zu",
                     (unsigned long long)(h->code_offset + announced), len);
  h->is64 = h->version >= 0x20c && get16(data + HDR_XLOADFLAGS) & XLF_KERNEL_64;
  h->relocatable = h->version >= 0x205 && data[HDR_RELOCATABLE];
  h->cmdline_max = h->version >= 0x206 ? get32(data + HDR_CMDLINE_SIZE) : 255;
  h->initrd_max = h->version >= 0x203 ? get32(data + HDR_INITRD_MAX) : 0x37ffffff;
  h->load =
      h->version >= 0x20a && get64(data + HDR_PREF_ADDRESS) ? get64(data + HDR_PREF_ADDRESS) : get32(data + HDR_CODE32_START);
  h->need = h->version >= 0x20a ? get32(data + HDR_INIT_SIZE) : 0;
  if (h->need < h->code_len) h->need = h->code_len;
  return 0;
}

/* The compressed kernel is payload_length bytes at payload_offset of the protected-mode code (protocol 2.08). */
static bool open_payload(struct boot_image *image, const uint8_t *data, const char **method) {
  const struct linux_header *h = &image->linux_hdr;
  *method = "unknown";
  if (h->version < 0x208) return false;
  uint64_t offset = get32(data + HDR_PAYLOAD_OFFSET), plen = get32(data + HDR_PAYLOAD_LENGTH);
  if (plen == 0 || offset > h->code_len || plen > h->code_len - offset) return false;
  size_t out_len;
  uint8_t *out = unpack_payload(data + h->code_offset + offset, plen, &out_len, method);
  if (!out) return false;
  char ignored[BOOT_ERR_LEN];
  if (out_len < SELFMAG || memcmp(out, ELFMAG, SELFMAG) != 0 || elf_parse(&image->elf, out, out_len, ignored) ||
      image->elf.is64 != h->is64) {
    free(out);
    return false;
  }
  image->data = out;
  image->len = out_len;
  image->is_elf = true;
  return true;
}

static int bz_open(struct boot_image *image, const uint8_t *data, size_t len, char *err) {
  const char *method;
  char version[64];
  if (read_header(&image->linux_hdr, data, len, err)) return -1;
  memcpy(image->setup, data, len < sizeof(image->setup) ? len : sizeof(image->setup));
  bool unpacked = open_payload(image, data, &method);
  if (!unpacked) {
    image->data = malloc(image->linux_hdr.code_len);
    if (!image->data) return boot_fail(err, "out of memory");
    image->len = image->linux_hdr.code_len;
    memcpy(image->data, data + image->linux_hdr.code_offset, image->len);
  }
  copy_version(data, len, version, sizeof(version));
  snprintf(image->text, sizeof(image->text), "Linux bzImage %s, %s-bit, %s payload %s", version,
           image->linux_hdr.is64 ? "64" : "32", method, unpacked ? "unpacked by the VMM" : "left to the guest to unpack");
  return 0;
}

/* The unpacked kernel runs at its link address: no relocation is due there ("KASLR" is the unpacker's work). */
static int load_unpacked(const struct boot_image *image, const struct boot_request *req, uint64_t *entry, uint64_t *end,
                         char *err) {
  const struct linux_header *h = &image->linux_hdr;
  if (elf_place(&image->elf, req->ram, err)) return -1;
  *entry = image->elf.entry;
  *end = image->elf.end;
  if (h->load + h->need > *end) *end = h->load + h->need;
  return 0;
}

static int load_packed(const struct boot_image *image, const struct boot_request *req, uint64_t *entry, uint64_t *end,
                       char *err) {
  const struct linux_header *h = &image->linux_hdr;
  if (boot_copy_in(req->ram, h->load, image->data, image->len, h->need, "the kernel", err)) return -1;
  *entry = h->load + (h->is64 ? ENTRY64 : 0); /* "64-bit Boot Protocol": the entry is 0x200 into the loaded code */
  *end = h->load + h->need;
  return 0;
}

static int bz_load(const struct boot_image *image, const struct boot_request *req, struct boot_entry *entry, char *err) {
  const struct linux_header *h = &image->linux_hdr;
  uint64_t start, end, initrd;
  if ((image->is_elf ? load_unpacked : load_packed)(image, req, &start, &end, err)) return -1;
  if (boot_place_cmdline(req, h->cmdline_max, err)) return -1;
  uint64_t limit = h->initrd_max < LAYOUT_HOLE_START ? h->initrd_max + 1 : LAYOUT_HOLE_START;
  if (boot_place_initrd(req, end, limit, &initrd, err)) return -1;
  linux_fill_zero_page(req, image->setup, initrd);
  (h->is64 ? boot_enter_long64 : boot_enter_prot32)(req, start, entry);
  entry->rsi = LAYOUT_ZERO_PAGE;
  return 0;
}

const struct boot_format boot_format_bzimage = {"bzImage", bz_probe, bz_open, bz_load};
