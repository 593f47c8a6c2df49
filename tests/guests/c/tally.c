// A guest in C, by hand: it counts how often it was told each word. docs/guests.md ("C") says how
// it is built; a test of the daemon builds it with each level of optimization and runs it.
//
// It has what real C has: frames that are cleared by `memset`, structures that are copied, `malloc`,
// and `snprintf`.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORTED(name) __attribute__((import_module("lockstep:guest/log@0.1.0"), import_name(name)))
#define EXPORTED(name) __attribute__((export_name("lockstep:guest/machine@0.1.0#" name)))
#define WORDS_MAX 64
#define WORD_BYTES_MAX 32

IMPORTED("log") void log_line(uint32_t level, const char *line, size_t length);

// The files of `printf` that no guest has. Without these it would import them from WASI.
#define WASI(name) __imported_wasi_snapshot_preview1_##name
int32_t WASI(fd_close)(int32_t file) { (void)file; return 8; }
int32_t WASI(fd_seek)(int32_t file, int64_t to, int32_t whence, int32_t at) {
  (void)file; (void)to; (void)whence; (void)at;
  return 8;
}
int32_t WASI(fd_write)(int32_t file, int32_t parts, int32_t count, int32_t written) {
  (void)file; (void)parts; (void)count; (void)written;
  return 8;
}

// As the canonical ABI lays them out.
struct list { void *items; size_t count; };
struct manifest { struct list name; uint32_t schema; struct list importable, read_only; uint8_t uses_time; };
struct replies { struct list data, ends, rejected; };
struct imported { uint8_t failed; struct list words; };

struct word { char text[WORD_BYTES_MAX]; uint32_t count; };
static struct word words[WORDS_MAX];
static uint32_t words_count;
static int exported;

__attribute__((export_name("cabi_realloc")))
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
  (void)old_size; (void)align;
  // What is freed below must have been allocated, also where it has no bytes.
  void *block = realloc(old, size ? size : 1);
  if (!block) __builtin_trap();
  return block;
}

EXPORTED("describe") struct manifest *describe(void) {
  static struct manifest manifest;
  static uint32_t importable[1] = {1};
  manifest = (struct manifest){ .name = {"tally", 5}, .schema = 1, .importable = {importable, 1} };
  return &manifest;
}

static struct word *find(const char *text, int add) {
  for (uint32_t i = 0; i < words_count; i++)
    if (strcmp(words[i].text, text) == 0) return &words[i];
  if (!add || words_count == WORDS_MAX) return NULL;
  struct word fresh;
  memset(&fresh, 0, sizeof fresh);
  strcpy(fresh.text, text);
  words[words_count] = fresh;
  return &words[words_count++];
}

static struct replies *answer(uint8_t *data, size_t length, uint32_t *ends, size_t count, int add) {
  static struct replies replies;
  free(replies.data.items);
  free(replies.ends.items);
  free(replies.rejected.items);
  memset(&replies, 0, sizeof replies);
  char *out = malloc(count * 64 + 1);
  uint32_t *out_ends = malloc(count * 4 + 4), *rejected = malloc(count * 4 + 4);
  size_t end = 0, refused = 0, start = 0;
  for (size_t i = 0; i < count; i++) {
    char text[WORD_BYTES_MAX];
    memset(text, 0, sizeof text);
    size_t bytes = ends[i] - start;
    if (bytes == 0 || bytes >= sizeof text || memchr(data + start, 0, bytes)) {
      rejected[refused++] = i;
      end += (size_t)snprintf(out + end, 64, "a word has 1 to %d bytes", WORD_BYTES_MAX - 1);
    } else {
      memcpy(text, data + start, bytes);
      struct word *word = find(text, add);
      if (word && add) word->count++;
      end += (size_t)snprintf(out + end, 64, "%.31s=%u", text, word ? (unsigned)word->count : 0);
    }
    out_ends[i] = end;
    start = ends[i];
  }
  (void)length;
  free(data);
  free(ends);
  replies.data = (struct list){out, end};
  replies.ends = (struct list){out_ends, count};
  replies.rejected = (struct list){rejected, refused};
  return &replies;
}

EXPORTED("apply") struct replies *apply(uint64_t index, uint64_t time_ms, uint64_t seed, uint8_t *data,
    size_t length, uint32_t *ends, size_t count) {
  (void)time_ms; (void)seed;
  if (index % 1000 == 0) log_line(2, "a thousand more", 15);
  return answer(data, length, ends, count, 1);
}

EXPORTED("query") struct replies *query(uint64_t index, uint64_t time_ms, uint64_t seed, uint8_t *data,
    size_t length, uint32_t *ends, size_t count) {
  (void)index; (void)time_ms; (void)seed;
  return answer(data, length, ends, count, 0);
}

EXPORTED("export-begin") void export_begin(void) { exported = 0; }

EXPORTED("export-next") struct list *export_next(uint32_t max) {
  static struct list chunk;
  (void)max;
  chunk = (struct list){words, exported ? 0 : words_count * sizeof words[0]};
  exported = 1;
  return &chunk;
}

EXPORTED("import-chunk") struct imported *import_chunk(uint32_t schema, uint8_t *bytes, size_t length, uint32_t last) {
  static struct imported imported;
  (void)schema; (void)last;
  memset(&imported, 0, sizeof imported);
  if (length % sizeof words[0] || length > sizeof words - words_count * sizeof words[0]) {
    imported = (struct imported){1, {"it is no export of words", 24}};
  } else {
    memcpy(&words[words_count], bytes, length);
    words_count += length / sizeof words[0];
  }
  free(bytes);
  return &imported;
}
