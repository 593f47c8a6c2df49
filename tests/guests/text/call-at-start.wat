;; A guest that calls the host before it is a guest: from its start function. In text, because no
;; compiler makes one.
(module
  (import "lockstep:guest/log@0.1.0" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "call-at-start")
  (func $start (call $log (i32.const 0) (i32.const 64) (i32.const 13)))
  (start $start)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
  (func $call (param i64 i64 i64 i32 i32 i32 i32) (result i32) (i32.const 128))
  (export "lockstep:guest/machine@0.1.0#apply" (func $call))
  (export "lockstep:guest/machine@0.1.0#query" (func $call))
  (func (export "lockstep:guest/machine@0.1.0#describe") (result i32) (i32.const 128))
  (func (export "lockstep:guest/machine@0.1.0#export-begin"))
  (func (export "lockstep:guest/machine@0.1.0#export-next") (param i32) (result i32)
    (i32.const 128))
  (func (export "lockstep:guest/machine@0.1.0#import-chunk") (param i32 i32 i32 i32) (result i32)
    (i32.const 128)))
