/* A small builder of AML, the byte code of ACPI's DSDT (ACPI 6.4, chapter 20). */
#ifndef VMM_ACPI_AML_H
#define VMM_ACPI_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Output that grows; once out of memory it swallows everything and failed is set. */
struct aml {
  uint8_t *data;
  size_t len, room;
  bool failed;
};

void aml_free(struct aml *a);
void aml_bytes(struct aml *a, const void *data, size_t len);
void aml_byte(struct aml *a, uint8_t b);

/* Objects. */
void aml_int(struct aml *a, uint64_t value);
void aml_string(struct aml *a, const char *text);
void aml_eisaid(struct aml *a, const char *id);  /* "PNP0A03" as its compressed DWord */
void aml_name(struct aml *a, const char *name4); /* Name(name4, — the value follows */
void aml_name_int(struct aml *a, const char *name4, uint64_t value);
void aml_name_eisaid(struct aml *a, const char *name4, const char *id);
void aml_namestring(struct aml *a, const char *path); /* "\\_SB", "PCI0" */

/* Constructs with a length: begin returns a mark for aml_end(). */
size_t aml_scope(struct aml *a, const char *path);
size_t aml_device(struct aml *a, const char *name4);
size_t aml_package(struct aml *a, uint8_t count);
size_t aml_var_package(struct aml *a, unsigned count); /* more than 255 elements */
size_t aml_method(struct aml *a, const char *name4, unsigned args);
void aml_end(struct aml *a, size_t mark);

/* A resource template: Buffer of descriptors (ACPI 6.4, 6.4) between these two. */
struct aml_crs {
  size_t package, size_at, start;
};
struct aml_crs aml_crs_begin(struct aml *a, const char *name4);
void aml_crs_end(struct aml *a, struct aml_crs crs);
void aml_crs_io(struct aml *a, uint16_t base, uint8_t len);
void aml_crs_irq(struct aml *a, unsigned irq); /* edge, active high, exclusive */
void aml_crs_memory32(struct aml *a, uint32_t base, uint32_t len);
void aml_crs_bus(struct aml *a, uint16_t first, uint16_t last);
void aml_crs_io_window(struct aml *a, uint16_t first, uint16_t last);
void aml_crs_memory32_window(struct aml *a, uint32_t first, uint32_t last);
void aml_crs_memory64_window(struct aml *a, uint64_t first, uint64_t last);

#endif
