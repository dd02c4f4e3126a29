/**
 * Reads the pickle of a PyTorch checkpoint: a description of named tensors. A pickle is a program; this reader knows
 * only the operations that describe dictionaries, lists, numbers, texts and tensors, and runs no code: any other
 * operation, and any name of a class or function that is not on the list, is refused.
 */
import { ServingError } from '../../process/errors.ts';

/** Bytes of one element, by the name of the storage. */
const ELEMENT_BYTES = { FloatStorage: 4, HalfStorage: 2, BFloat16Storage: 2 } as const;
type StorageType = keyof typeof ELEMENT_BYTES;

interface Storage {
  readonly kind: 'storage';
  readonly type: StorageType;
  /** Name of the file with its elements. */
  readonly key: string;
  /** Number of elements. */
  readonly count: number;
}

/** A view into a storage. Offset and strides count elements. */
export interface PickledTensor {
  readonly kind: 'tensor';
  readonly storage: Storage;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

interface Callable {
  readonly kind: 'callable';
  readonly name: string;
}
interface Opaque {
  readonly kind: 'storage type';
  readonly type: StorageType;
}
type Value =
  | null
  | boolean
  | number
  | string
  | Value[]
  | Map<Value, Value>
  | Storage
  | PickledTensor
  | Callable
  | Opaque;

const MARK = Symbol('mark');
const CALLABLES = new Set([
  'collections.OrderedDict',
  'torch._utils._rebuild_tensor_v2',
  'torch._utils._rebuild_parameter',
]);

export const elementBytes = ({ type }: Storage): number => ELEMENT_BYTES[type];

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isCounts = (value: unknown): value is number[] => Array.isArray(value) && value.every(isCount);
const isKind = <K extends string>(value: unknown, kind: K): value is Extract<Value, { kind: K }> =>
  typeof value === 'object' && value !== null && 'kind' in value && value.kind === kind;

/**
 * The tensors of a pickle by name. Those of nested dictionaries have the names on the way joined by dots; all that is
 * not a tensor is left out.
 * @param origin for messages
 * @throws ServingError checkpoint_invalid for anything but a description of tensors.
 */
export function readPickledTensors(origin: string, bytes: Uint8Array): Map<string, PickledTensor> {
  try {
    return tensorsIn(new Reader(bytes).run());
  } catch (cause) {
    throw new ServingError('checkpoint_invalid', `${origin}: ${(cause as Error).message}`, { cause });
  }
}

function tensorsIn(root: Value): Map<string, PickledTensor> {
  const tensors = new Map<string, PickledTensor>();
  const seen = new Set<Value>();
  const visit = (value: Value, name: string) => {
    if (isKind(value, 'tensor')) tensors.set(name, value);
    if (!(value instanceof Map) || seen.has(value)) return; // a dictionary may contain itself
    seen.add(value);
    for (const [key, inner] of value) if (typeof key === 'string') visit(inner, name === '' ? key : `${name}.${key}`);
  };
  visit(root, '');
  return tensors;
}

class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #stack: (Value | typeof MARK)[] = [];
  readonly #memo = new Map<number, Value>();
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  run(): Value {
    for (;;) {
      const code = String.fromCharCode(this.#take(1)[0]!);
      if (code === '.') return this.#pop();
      this.#step(code);
    }
  }

  #step(code: string): void {
    const constant = CONSTANTS[code];
    if (constant !== undefined) return void this.#stack.push(constant());
    switch (code) {
      case '\x80': // PROTO
        return void this.#take(1);
      case '\x95': // FRAME
        return void this.#take(8);
      case '(':
        return void this.#stack.push(MARK);
      case '0': // POP
        return void this.#stack.pop();
      case 'K': // BININT1
        return void this.#stack.push(this.#take(1)[0]!);
      case 'M': // BININT2
        return void this.#stack.push(this.#view.getUint16(this.#advance(2), true));
      case 'J': // BININT
        return void this.#stack.push(this.#view.getInt32(this.#advance(4), true));
      case '\x8a': // LONG1
        return void this.#stack.push(this.#long());
      case 'G': // BINFLOAT
        return void this.#stack.push(this.#view.getFloat64(this.#advance(8), false));
      case 'X': // BINUNICODE
        return void this.#stack.push(this.#text(this.#view.getUint32(this.#advance(4), true)));
      case '\x8c': // SHORT_BINUNICODE
        return void this.#stack.push(this.#text(this.#take(1)[0]!));
      case 'q': // BINPUT
        return void this.#memo.set(this.#take(1)[0]!, this.#top());
      case 'r': // LONG_BINPUT
        return void this.#memo.set(this.#view.getUint32(this.#advance(4), true), this.#top());
      case '\x94': // MEMOIZE
        return void this.#memo.set(this.#memo.size, this.#top());
      case 'h': // BINGET
        return void this.#recall(this.#take(1)[0]!);
      case 'j': // LONG_BINGET
        return void this.#recall(this.#view.getUint32(this.#advance(4), true));
      default:
        return void this.#combine(code);
    }
  }

  /** The operations that make something of what is on the stack. */
  #combine(code: string): void {
    switch (code) {
      case 't':
      case 'l':
        return void this.#stack.push(this.#sinceMark());
      case '\x85': // TUPLE1, 2, 3
      case '\x86':
      case '\x87':
        return void this.#stack.push(this.#popped(code.charCodeAt(0) - 0x84));
      case 'a':
      case 'e': {
        const items = code === 'a' ? this.#popped(1) : this.#sinceMark();
        const list = this.#top();
        if (!Array.isArray(list)) throw new Error('its pickle appends to what is not a list');
        return void list.push(...items);
      }
      case 's':
      case 'u':
        return void this.#setItems(code === 's' ? this.#popped(2) : this.#sinceMark());
      case 'c':
        return void this.#stack.push(named(`${this.#line()}.${this.#line()}`));
      case '\x93': {
        // STACK_GLOBAL
        const [module, name] = this.#popped(2);
        return void this.#stack.push(named(`${String(module)}.${String(name)}`));
      }
      case 'Q': // BINPERSID
        return void this.#stack.push(storage(this.#pop()));
      case 'R': {
        const [callable, args] = this.#popped(2);
        return void this.#stack.push(reduce(callable!, args!));
      }
      case 'b': // BUILD: notes about a dictionary, such as versions of modules
        this.#pop();
        return void this.#top();
      default:
        throw new Error(`its pickle has the operation 0x${code.charCodeAt(0).toString(16)}, which describes no tensor`);
    }
  }

  #setItems(items: Value[]): void {
    const map = this.#top();
    if (!(map instanceof Map) || items.length % 2 !== 0) throw new Error('its pickle sets items of what has none');
    for (let i = 0; i < items.length; i += 2) map.set(items[i]!, items[i + 1]!);
  }

  /** A whole number of up to 6 bytes: sizes are not larger. */
  #long(): number {
    const length = this.#take(1)[0]!;
    if (length === 0) return 0;
    const bytes = this.#take(length);
    if (length > 6) throw new Error(`its pickle has a number of ${length} bytes`);
    return Buffer.from(bytes).readIntLE(0, length);
  }

  #advance(count: number): number {
    const at = this.#at;
    if (at + count > this.#bytes.length) throw new Error('its pickle is cut short');
    this.#at += count;
    return at;
  }

  #take(count: number): Uint8Array {
    const at = this.#advance(count);
    return this.#bytes.subarray(at, at + count);
  }

  #text(length: number): string {
    return new TextDecoder('utf-8', { fatal: true }).decode(this.#take(length));
  }

  #line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at);
    if (end < 0) throw new Error('its pickle is cut short');
    const text = this.#text(end - this.#at);
    this.#advance(1);
    return text;
  }

  #recall(index: number): void {
    const value = this.#memo.get(index);
    if (value === undefined) throw new Error(`its pickle recalls ${index}, which it has not kept`);
    this.#stack.push(value);
  }

  #top(): Value {
    const value = this.#stack.at(-1);
    if (value === undefined || value === MARK) throw new Error('its pickle takes a value that is not there');
    return value;
  }

  #pop(): Value {
    const value = this.#top();
    this.#stack.pop();
    return value;
  }

  /** The last values, in the order in which they came. */
  #popped(count: number): Value[] {
    return Array.from({ length: count }, () => this.#pop()).reverse();
  }

  #sinceMark(): Value[] {
    const at = this.#stack.lastIndexOf(MARK);
    if (at < 0) throw new Error('its pickle takes values since a mark that is not there');
    const values = this.#stack.splice(at).slice(1);
    return values as Value[];
  }
}

/** NONE, NEWTRUE, NEWFALSE, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE */
const CONSTANTS: Readonly<Record<string, (() => Value) | undefined>> = {
  N: () => null,
  '\x88': () => true,
  '\x89': () => false,
  '}': () => new Map(),
  ']': () => [],
  ')': () => [],
};

function named(name: string): Value {
  const type = /^torch\.(\w+)$/.exec(name)?.[1];
  if (type !== undefined && Object.hasOwn(ELEMENT_BYTES, type))
    return { kind: 'storage type', type: type as StorageType };
  if (CALLABLES.has(name)) return { kind: 'callable', name };
  throw new Error(
    `its pickle asks for ${name}, and nothing but tensors in F32, F16 and BF16 is read: save the state_dict as safetensors`,
  );
}

/** The tuple ('storage', type, key, location, count) by which PyTorch refers to a file of the archive. */
function storage(reference: Value): Value {
  const [tag, type, key, , count] = Array.isArray(reference) ? reference : [];
  if (tag !== 'storage' || !isKind(type, 'storage type') || typeof key !== 'string' || !isCount(count)) {
    throw new Error('its pickle refers to a storage in an unknown form');
  }
  return { kind: 'storage', type: type.type, key, count };
}

function reduce(callable: Value, args: Value): Value {
  if (!isKind(callable, 'callable') || !Array.isArray(args)) throw new Error('its pickle calls what is not a function');
  if (callable.name === 'collections.OrderedDict') return new Map();
  const [first, offset, shape, strides] = args;
  if (callable.name === 'torch._utils._rebuild_parameter') {
    if (!isKind(first, 'tensor')) throw new Error('its pickle makes a parameter of what is not a tensor');
    return first;
  }
  if (!isKind(first, 'storage') || !isCount(offset) || !isCounts(shape) || !isCounts(strides)) {
    throw new Error('its pickle describes a tensor in an unknown form');
  }
  return { kind: 'tensor', storage: first, offset, shape, strides };
}
