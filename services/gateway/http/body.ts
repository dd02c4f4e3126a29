/**
 * Bodies of requests as bytes and as text: one rule for completions and for uploads. A content-encoding is undone while
 * the body comes, within bounds; JSON is UTF-8.
 */
import { Transform } from 'node:stream';
import * as zlib from 'node:zlib';
import type { FastifyReply, FastifyRequest, RequestPayload } from 'fastify';
import { inTurns, Turns } from '../../lib/async/turns.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { JsonError, type JsonLimits, jsonSteps } from '../../lib/text/json-reader.ts';

/** zstd came to Node with 22.15. */
interface MaybeZstd {
  readonly createZstdDecompress?: (options: { params: Record<number, number> }) => Transform & zlib.Zlib;
  readonly constants: { readonly ZSTD_d_windowLogMax?: number };
}
const { createZstdDecompress, constants } = zlib as MaybeZstd;

/** A frame of zstd may ask for a window of 128 MiB: 8 MiB are what decoders must support (RFC 9659). */
const ZSTD_WINDOW_LOG = 23;

/** What undoes each content-encoding. Each holds a window of at most 16 MiB (br). */
const DECODERS = new Map<string, () => Transform & zlib.Zlib>([
  ['gzip', () => zlib.createGunzip()],
  ['deflate', () => zlib.createInflate()],
  ['br', () => zlib.createBrotliDecompress()],
]);
if (createZstdDecompress) {
  const params = { [constants.ZSTD_d_windowLogMax ?? 0]: ZSTD_WINDOW_LOG };
  DECODERS.set('zstd', () => createZstdDecompress({ params }));
}
const ACCEPTED = [...DECODERS.keys()].join(', ');

/**
 * Decoded bytes for each byte that was sent. Source code packs about 5:1, repetitive code 50:1, and deflate can reach
 * 1000:1.
 */
const MAX_RATIO = 100;
/** So many decoded bytes are not suspicious at any ratio. */
const RATIO_FREE = 32 * 1024 * 1024;

/**
 * The body without its content-encoding. What reads it counts its bytes against the limit of the route; what is decoded
 * and not read waits, so that a body that is small on the wire and huge in memory costs a few buffers.
 * @throws ServingError unsupported_media_type for an encoding that is not accepted, which the answer's
 *   `accept-encoding` names too. The stream fails with payload_too_large or invalid_request.
 */
export function decodedBody(request: FastifyRequest, reply: FastifyReply, payload: RequestPayload): RequestPayload {
  const coding = codingOf(request, reply);
  if (coding === undefined) return payload;
  const decoder = DECODERS.get(coding)!();
  let decoded = 0;
  const body = new Transform({
    transform(data: Buffer, _, done) {
      decoded += data.length;
      if (decoded <= Math.max(RATIO_FREE, decoder.bytesWritten * MAX_RATIO)) return done(null, data);
      const message = `the body decodes to more than ${MAX_RATIO} times its size: source code does not`;
      done(new ServingError('payload_too_large', message));
    },
  });
  // The rest of the body is read and dropped: a client that still sends gets its answer.
  const stop = () => {
    payload.unpipe(decoder);
    decoder.destroy();
    payload.resume();
  };
  body.on('error', stop);
  reply.raw.once('close', stop);
  payload.once('error', (error) => body.destroy(error));
  decoder.once('error', (cause) => {
    body.destroy(new ServingError('invalid_request', `the body is not valid ${coding}: ${cause.message}`, { cause }));
  });
  payload.pipe(decoder).pipe(body);
  // fastify compares this with content-length, and the bytes that come out of the stream with its limit.
  return Object.defineProperty(body, 'receivedEncodedLength', { get: () => decoder.bytesWritten });
}

/** Calls back when a body is read for the first time. */
export function onceRead(body: RequestPayload, read: () => void): void {
  const onListener = (event: string | symbol) => {
    if (event !== 'data' && event !== 'readable') return;
    body.off('newListener', onListener);
    read();
  };
  body.on('newListener', onListener);
}

/** The content-encoding of a request's body; undefined where it has none. */
function codingOf({ headers }: FastifyRequest, reply: FastifyReply): string | undefined {
  const codings = (headers['content-encoding'] ?? '')
    .toLowerCase()
    .split(',')
    .map((each) => each.trim().replace(/^x-gzip$/, 'gzip'))
    .filter((each) => each !== '' && each !== 'identity');
  const [coding] = codings;
  if (coding === undefined) return undefined;
  if (codings.length === 1 && DECODERS.has(coding)) return coding;
  reply.header('accept-encoding', ACCEPTED);
  const named = codings.join(', ').slice(0, 100);
  throw new ServingError('unsupported_media_type', `content-encoding ${named} is not accepted: use one of ${ACCEPTED}`);
}

/** @throws ServingError unsupported_media_type for JSON that says that it is not UTF-8. */
export function assertUtf8({ headers }: FastifyRequest): void {
  const [type = '', ...parameters] = (headers['content-type'] ?? '').toLowerCase().split(';');
  if (type.trim() !== 'application/json') return;
  for (const parameter of parameters) {
    const [, charset] = /^\s*charset\s*=\s*"?([^"\s]*)/.exec(parameter) ?? [];
    if (charset === undefined || /^(utf-?8|us-ascii)$/.test(charset)) continue;
    const message = `charset ${charset.slice(0, 100)} is not accepted: JSON must be UTF-8`;
    throw new ServingError('unsupported_media_type', message);
  }
}

/** More of anything than a request needs; what a request may have exactly is its route's business. */
const JSON_LIMITS: JsonLimits = {
  depth: 32,
  // At most 128 prompts, as lists of token ids.
  containers: 2_048,
  // At most 128 prompts and 16 stop strings.
  strings: 4_096,
  // Some 40 fields, and 1,024 entries of logit_bias.
  names: 4_096,
  // Token ids. All 4 MiB may be ids of five digits.
  numbers: 1_000_000,
};
/** A body of more bytes leaves what comes next to another turn of the event loop. */
const LARGE_BYTES = 65_536;

/**
 * Reads JSON in turns.
 * @throws ServingError invalid_request for bytes that are not UTF-8, or not JSON, or JSON of more parts than a request
 *   can need.
 */
export async function parseJson(bytes: Uint8Array): Promise<unknown> {
  try {
    const value = await inTurns(jsonSteps(bytes, JSON_LIMITS));
    if (bytes.length > LARGE_BYTES) await new Turns().next();
    return value;
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    throw new ServingError('invalid_request', `the body is not valid JSON: ${error.message}`, { cause: error });
  }
}
