/* Recognises a kernel file's format and hands it to that format's loader. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/boot/boot_priv.h"

/* In order of precedence: a vmlinux is also an ELF, a multiboot kernel usually is. */
static const struct boot_format *const formats[] = {
    &boot_format_bzimage,
    &boot_format_pvh,
    &boot_format_multiboot,
    &boot_format_elf,
};

int boot_fail(char *err, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(err, BOOT_ERR_LEN, fmt, ap);
  va_end(ap);
  return -1;
}

struct boot_image *boot_image_open(const void *file, size_t len, char err[BOOT_ERR_LEN]) {
  if (len == 0) {
    boot_fail(err, "the kernel file is empty");
    return NULL;
  }
  for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
    if (!formats[i]->probe(file, len)) continue;
    struct boot_image *image = calloc(1, sizeof(*image));
    if (!image) {
      boot_fail(err, "out of memory");
      return NULL;
    }
    image->format = formats[i];
    if (formats[i]->open(image, file, len, err) == 0) return image;
    boot_image_free(image);
    return NULL;
  }
  boot_fail(err, "the kernel file is none of bzImage, ELF (PVH, vmlinux, bare) or multiboot");
  return NULL;
}

void boot_image_free(struct boot_image *image) {
  if (!image) return;
  free(image->data);
  free(image);
}

const char *boot_image_describe(const struct boot_image *image) {
  return image->text;
}

int boot_image_load(const struct boot_image *image, const struct boot_request *req, struct boot_entry *entry,
                    char err[BOOT_ERR_LEN]) {
  memset(entry, 0, sizeof(*entry));
  if (!boot_ram_at(req->ram, 0, LAYOUT_HIGH))
    return boot_fail(err, "the machine needs at least 1 MiB of memory to load a kernel");
  return image->format->load(image, req, entry, err);
}
