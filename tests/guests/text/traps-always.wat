;; A guest that traps on every command, and answers queries.
(module
  (memory (export "memory") 1)
  ;; Where the next allocation begins.
  (data (i32.const 0) "\00\10\00\00")
  ;; The manifest: name, schema version, importable schemas, no read-only requests, no time.
  (data (i32.const 16) "\40\00\00\00\0c\00\00\00\01\00\00\00\50\00\00\00\01\00\00\00")
  (data (i32.const 64) "traps-always")
  (data (i32.const 80) "\01\00\00\00")

  (func (export "cabi_realloc") (param i32 i32 i32) (param $bytes i32) (result i32)
    (local $place i32)
    (local.set $place
      (i32.and (i32.add (i32.load (i32.const 0)) (i32.const 7)) (i32.const -8)))
    (i32.store (i32.const 0) (i32.add (local.get $place) (local.get $bytes)))
    (local.get $place))

  ;; Replies are the requests; what they are laid out in is free again.
  (func $echo (param i64 i64 i64) (param $data i32) (param $bytes i32)
    (param $ends i32) (param $count i32) (result i32)
    (i32.store (i32.const 0) (i32.const 4096))
    (i32.store (i32.const 96) (local.get $data))
    (i32.store (i32.const 100) (local.get $bytes))
    (i32.store (i32.const 104) (local.get $ends))
    (i32.store (i32.const 108) (local.get $count))
    (i32.const 96))

  (func (export "lockstep:guest/machine@0.1.0#apply") (param i64 i64 i64 i32 i32 i32 i32)
    (result i32)
    unreachable)
  (export "lockstep:guest/machine@0.1.0#query" (func $echo))
  (func (export "lockstep:guest/machine@0.1.0#describe") (result i32) (i32.const 16))
  (func (export "lockstep:guest/machine@0.1.0#export-begin"))
  (func (export "lockstep:guest/machine@0.1.0#export-next") (param i32) (result i32)
    (i32.const 128))
  (func (export "lockstep:guest/machine@0.1.0#import-chunk") (param i32 i32 i32 i32) (result i32)
    (i32.const 128)))
