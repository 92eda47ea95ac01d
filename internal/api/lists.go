package api

import "reflect"

// withLists returns v with an empty list wherever it had none, at any depth:
// whoever reads the JSON may always iterate.
func withLists[T any](v T) T {
	rv := reflect.ValueOf(&v).Elem()
	if rv.Kind() == reflect.Interface && !rv.IsNil() { // T is any: work on a copy of what it holds
		held := reflect.New(rv.Elem().Type()).Elem()
		held.Set(rv.Elem())
		fillLists(held)
		rv.Set(held)
		return v
	}
	fillLists(rv)
	return v
}

// fillLists works on the structs and lists of this package. It does not look
// into pointers, which here lead to plain values, nor into other packages'
// types, whose fields are not exported.
func fillLists(v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice:
		if v.IsNil() {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		for i := range v.Len() {
			fillLists(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				fillLists(f)
			}
		}
	}
}
