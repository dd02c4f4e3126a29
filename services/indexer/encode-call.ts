/**
 * The call by which gateways have chunks encoded that are not indexed: parts of the files that editors hold. The
 * vectors are rounded as those of an index are, so that equal chunks are equal in a prompt.
 */
import { ServingError } from '../lib/process/errors.ts';
import type { TraceHeaders } from '../lib/process/span.ts';
import { beginTrace, traced } from '../lib/process/tracing.ts';
import type { ContextEncoder } from '../lib/rag/encode/encode.ts';
import { contextFingerprint } from '../lib/rag/store/row.ts';
import { encodeHalves } from '../lib/rag/store/vector-codec.ts';
import type { EncodeRequest__Output } from '../lib/rpc/gen/llavacode/v1/EncodeRequest.ts';
import type { EncodeResponse } from '../lib/rpc/gen/llavacode/v1/EncodeResponse.ts';

/** Most chunks of one call, and most bytes of the text of each, as the protocol says. */
const MAX_CHUNKS = 64;
const MAX_BYTES = 65_536;
/** The most calls at a time. They share the encoder with the runs. */
const MAX_CALLS = 8;

/**
 * @param draining refuses calls once it is aborted.
 * @returns throws ServingError invalid_request, saturated, draining; runtime_failed of the encoder.
 */
export function encodeCall(encoder: ContextEncoder, draining: AbortSignal) {
  let calls = 0;
  const encode = async ({ chunks }: EncodeRequest__Output): Promise<EncodeResponse> => {
    draining.throwIfAborted();
    const large = chunks.find(({ text }) => Buffer.byteLength(text) > MAX_BYTES);
    if (large) throw refused(`a chunk of ${large.path} has more than ${MAX_BYTES} bytes`);
    if (chunks.length > MAX_CHUNKS) throw refused(`${chunks.length} chunks are more than the ${MAX_CHUNKS} of a call`);
    if (calls >= MAX_CALLS) {
      throw new ServingError('saturated', `${calls} calls of Encode are being answered already`, {
        retryAfterSeconds: 1,
      });
    }
    calls++;
    try {
      const encoded = await encoder.encode(chunks);
      const vectors = Buffer.concat(encoded.map(({ vector }) => encodeHalves(vector)));
      return { fingerprint: contextFingerprint(encoder.fingerprint), vectors };
    } finally {
      calls--;
    }
  };
  return (request: EncodeRequest__Output, caller: TraceHeaders): Promise<EncodeResponse> => {
    const attributes = { 'llavacode.chunks': request.chunks.length };
    const span = beginTrace('encode', caller, { kind: 'server', atMs: performance.now(), attributes });
    return traced(span, encode(request));
  };
}

const refused = (message: string) => new ServingError('invalid_request', message);
