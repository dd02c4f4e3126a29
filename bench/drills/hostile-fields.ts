/**
 * Every field of every body that a gateway describes in its `/docs/json`, one after the other, each with values as
 * large as a body may be: a field that is added to a route is tried without a line here. The other fields are the least
 * that the route asks for, so that the value comes as far as it can.
 */

/** A part of a description, as far as it is used: JSON Schema. */
interface Schema {
  readonly type?: string | readonly string[];
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly maxLength?: number;
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
}

/** A description of an API, as far as it is used: OpenAPI. */
export interface Description {
  readonly paths: Readonly<
    Record<
      string,
      { readonly post?: { readonly requestBody?: { readonly content: Readonly<Record<string, Content>> } } }
    >
  >;
}
interface Content {
  readonly schema: Schema;
}

export interface FieldBody {
  readonly path: string;
  /** Where the value stands, such as `rag.files[].text`. */
  readonly field: string;
  /** What is large about it. */
  readonly value: string;
  readonly body: string;
}

/** Values of fields without which a body would cost decode steps, or be refused before the field is looked at. */
const GIVEN: Readonly<Record<string, unknown>> = {
  max_tokens: 1,
  n_predict: 1,
  options: { num_predict: 1 },
  rag: { repo: 'shop' },
  segments: { prefix: 'x' },
};
/** Stands for the value until the body is text: JSON.stringify could not write all of them. */
const HERE = '\u0001here';
const ENGINE = /\{\w+\}/g;

/**
 * The bodies, each made when it is asked for.
 * @param bytes size of a body.
 */
export function* fieldBodies({ paths }: Description, bytes: number): Generator<FieldBody> {
  const tried = new Set<string>();
  for (const [path, { post }] of Object.entries(paths)) {
    const schema = post?.requestBody?.content['application/json']?.schema;
    for (const whole of schema === undefined ? [] : (schema.anyOf ?? schema.oneOf ?? [schema])) {
      const written = JSON.stringify(whole);
      if (tried.has(written)) continue; // the same body under another name
      tried.add(written);
      const least = leastOf(whole);
      for (const [field, at, value] of fieldsOf(whole)) {
        const body = JSON.stringify(at(least));
        for (const [name, text] of largeValues(value, bytes - body.length)) {
          // A function, since a text may hold `$&`.
          yield {
            path: path.replace(ENGINE, 'x'),
            field,
            value: name,
            body: body.replace(JSON.stringify(HERE), () => text),
          };
        }
      }
    }
  }
}

/** Puts {@link HERE} into a value, at one field. */
type Place = (value: unknown) => unknown;

/** The fields of an object, and those of the objects in them. */
function* fieldsOf({ properties = {} }: Schema): Generator<readonly [field: string, at: Place, schema: Schema]> {
  for (const [name, schema] of Object.entries(properties)) {
    const within =
      (at: Place): Place =>
      (object) => ({ ...(object as object), [name]: at((object as Record<string, unknown>)[name] ?? leastOf(schema)) });
    yield [name, within(() => HERE), schema];
    for (const [field, at, inner] of fieldsOf(schema)) yield [`${name}.${field}`, within(at), inner];
    const { items } = schema;
    if (items === undefined) continue;
    for (const [field, at, inner] of fieldsOf(items)) {
      yield [`${name}[].${field}`, within(() => [at(leastOf(items))]), inner];
    }
  }
}

/** The smallest value that a schema takes. */
function leastOf(schema: Schema): unknown {
  const { type, anyOf, properties, required = [], items, minItems = 0 } = schema;
  if (anyOf !== undefined) return leastOf(anyOf[0]!);
  if (schema.enum !== undefined || schema.const !== undefined) return schema.enum?.[0] ?? schema.const;
  if (properties !== undefined) {
    const names = Object.keys(properties).filter((name) => required.includes(name) || Object.hasOwn(GIVEN, name));
    return Object.fromEntries(names.map((name) => [name, GIVEN[name] ?? leastOf(properties[name]!)]));
  }
  if (type === 'array') return Array.from({ length: minItems }, () => leastOf(items ?? {}));
  return type === 'integer' || type === 'number' ? 0 : type === 'boolean' ? false : 'x';
}

/** Values of a field that take all of a body, and those at the limit that its schema names; as JSON. */
function* largeValues({ anyOf, ...schema }: Schema, bytes: number): Generator<readonly [name: string, text: string]> {
  for (const other of anyOf ?? []) yield* largeValues(other, bytes);
  if (anyOf !== undefined) return;
  const { type, items, maxItems = Infinity, maxLength = Infinity } = schema;
  const code = (length: number) => JSON.stringify('word = f(x)\n'.repeat(Math.ceil(length / 12)).slice(0, length));
  if (type === 'string' || type === 'boolean' || type === undefined) {
    yield ['a text', code(Math.floor((bytes * 12) / 13) - 2)];
    if (maxLength < bytes) yield ['a text as long as it may be', code(maxLength)];
  }
  if (type === 'array' || type === undefined) {
    const item = JSON.stringify(leastOf(items ?? {}));
    const list = (length: number) => `[${Array.from({ length }, () => item).join(',')}]`;
    const most = Math.floor((bytes - 2) / (item.length + 1));
    yield ['a list', list(most)];
    if (maxItems < most) yield ['a list as long as it may be', list(maxItems)];
  }
  if (type === 'integer' || type === 'number') yield ['a number', '9'.repeat(bytes)];
  if (type === 'object' || type === undefined) {
    const names = Array.from({ length: Math.floor(bytes / 13) - 1 }, (_, i) => `"k${String(i).padStart(7, '0')}":0`);
    yield ['an object', `{${names.join(',')}}`];
  }
}
