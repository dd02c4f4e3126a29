/**
 * The one error table. Every failure that a user, an operator or another service can see is a {@link ServingError}
 * with a code from here; the HTTP status, gRPC status and remedy follow from the code. Errors of other libraries are
 * turned into one at each border, once, by {@link ServingError.from}.
 */

interface ErrorKind {
  /** Status code of the HTTP answer. */
  readonly http: number;
  /** Name of the gRPC status. */
  readonly grpc: string;
  /** Whether the same request may succeed elsewhere or a little later. */
  readonly retryable: boolean;
  /** The step that the reader can take. */
  readonly remedy: string;
}

const kind = (http: number, grpc: string, retryable: boolean, remedy: string): ErrorKind => ({
  http,
  grpc,
  retryable,
  remedy,
});

export const ERRORS = {
  // The client can mend these.
  invalid_request: kind(400, 'INVALID_ARGUMENT', false, 'Correct the field that the message names.'),
  context_length_exceeded: kind(
    400,
    'OUT_OF_RANGE',
    false,
    'Shorten the prompt or max_tokens, or serve with a larger --capacity.',
  ),
  chat_unsupported: kind(
    400,
    'INVALID_ARGUMENT',
    false,
    'Use POST /v1/completions, or serve a model whose tokenizer_config.json has a chat_template.',
  ),
  suffix_unsupported: kind(
    400,
    'INVALID_ARGUMENT',
    false,
    'Leave out suffix, serve a model that fills in the middle, or serve with --suffix-unsupported report.',
  ),
  invalid_api_key: kind(
    401,
    'UNAUTHENTICATED',
    false,
    'Send authorization: Bearer KEY (or x-api-key: KEY, or api-key: KEY), with a key of --api-keys-file.',
  ),
  api_key_expired: kind(
    401,
    'UNAUTHENTICATED',
    false,
    'Use the key that took its place, or have a new one added to --api-keys-file, or `expires` of this one set later.',
  ),
  host_not_allowed: kind(
    403,
    'PERMISSION_DENIED',
    false,
    'Use 127.0.0.1 or localhost as the host, or set --api-keys-file: without keys a web page could send requests here.',
  ),
  access_denied: kind(
    403,
    'PERMISSION_DENIED',
    false,
    "Use a key with more access, or raise this key's in --api-keys-file.",
  ),
  not_found: kind(404, 'UNIMPLEMENTED', false, 'See README.md for the routes.'),
  method_not_allowed: kind(405, 'UNIMPLEMENTED', false, 'Use the method that the message names.'),
  model_not_found: kind(404, 'NOT_FOUND', false, 'Use the served name, which GET /v1/models shows.'),
  repo_not_found: kind(
    404,
    'NOT_FOUND',
    false,
    'Index the repository first: llavacode index --name REPO --path DIR, or PUT /v1/repos/REPO.',
  ),
  payload_too_large: kind(413, 'RESOURCE_EXHAUSTED', false, 'Send less, or raise the limit that the message names.'),
  headers_too_large: kind(431, 'RESOURCE_EXHAUSTED', false, 'Send fewer or shorter headers.'),
  request_timeout: kind(
    408,
    'DEADLINE_EXCEEDED',
    true,
    'Send the whole request within --receive-timeout-ms (an upload within --upload-timeout-ms).',
  ),
  unsupported_media_type: kind(
    415,
    'INVALID_ARGUMENT',
    false,
    'Send JSON in UTF-8 as content-type: application/json (for a repository also application/x-tar, ' +
      'application/gzip, application/zip), with a content-encoding of gzip, deflate, br or none.',
  ),
  // Waiting, or another worker, can mend these.
  quota_exceeded: kind(
    429,
    'RESOURCE_EXHAUSTED',
    true,
    "Retry after the time in Retry-After, or raise the tenant's limits.",
  ),
  saturated: kind(429, 'RESOURCE_EXHAUSTED', true, 'Retry after the time in Retry-After; add workers if it persists.'),
  superseded: kind(409, 'CANCELLED', false, 'None: a newer request of the same session took its place.'),
  client_gone: kind(499, 'CANCELLED', false, 'None: the client hung up.'),
  slow_reader: kind(499, 'CANCELLED', false, 'Read the answer as it comes, or raise --slow-reader-ms.'),
  no_worker: kind(503, 'UNAVAILABLE', true, 'Start a prefill and a decode worker of the same bundle.'),
  worker_lost: kind(503, 'UNAVAILABLE', true, "Retry; see the lost worker's log."),
  worker_stalled: kind(503, 'UNAVAILABLE', true, 'Retry; see why the worker hangs, or raise --stall-timeout-ms.'),
  draining: kind(503, 'UNAVAILABLE', true, 'Retry; the process is shutting down.'),
  deadline_exceeded: kind(
    504,
    'DEADLINE_EXCEEDED',
    true,
    'Retry, or raise the limit that the message names, or --request-timeout-ms where it names none.',
  ),
  // These went wrong between workers.
  not_a_member: kind(
    503,
    'UNAUTHENTICATED',
    false,
    'Start all services of a system with the same --rpc-secret-file, and use certificates (--rpc-cert) across address translation (NAT).',
  ),
  kv_handle_untrusted: kind(
    500,
    'PERMISSION_DENIED',
    false,
    'Start all workers with the same --rpc-secret-file; if they have it, somebody makes up handles: see who calls the worker.',
  ),
  fingerprint_mismatch: kind(500, 'FAILED_PRECONDITION', false, 'Serve one bundle on all workers.'),
  kv_layout_mismatch: kind(500, 'FAILED_PRECONDITION', false, 'Serve one bundle on all workers.'),
  kv_digest_mismatch: kind(500, 'DATA_LOSS', true, 'Retry; check the network and memory if it recurs.'),
  kv_truncated: kind(500, 'DATA_LOSS', true, 'Retry; the prefill worker or the network broke off.'),
  lease_unknown: kind(500, 'NOT_FOUND', true, 'Retry; the staged KV cache was released or never existed.'),
  lease_expired: kind(500, 'ABORTED', true, 'Retry; raise --kv-lease-ms if decode is slow to come.'),
  // The operator can mend these.
  config_invalid: kind(500, 'INTERNAL', false, 'Correct every setting that the message names.'),
  checkpoint_invalid: kind(500, 'INTERNAL', false, 'Download the checkpoint again, or name a supported one.'),
  bundle_invalid: kind(500, 'INTERNAL', false, 'Make the bundle again with llavacode export.'),
  projector_invalid: kind(500, 'INTERNAL', false, 'Use a projector trained for this encoder and LLM.'),
  sample_invalid: kind(500, 'INTERNAL', false, 'Correct the sample that the message names, or leave it out.'),
  training_diverged: kind(
    500,
    'INTERNAL',
    false,
    'Lower the learning rate, or leave out the sample that the message names; go on from the last checkpoint.',
  ),
  runtime_unsupported: kind(500, 'INTERNAL', false, 'Install the pinned onnxruntime-node: npm ci.'),
  provider_unavailable: kind(500, 'INTERNAL', false, 'Use --provider cpu.'),
  runtime_failed: kind(500, 'INTERNAL', true, 'Retry; the message of ONNX Runtime says why.'),
  out_of_memory: kind(500, 'INTERNAL', false, 'Lower --slots or --capacity.'),
  address_in_use: kind(500, 'INTERNAL', false, 'Choose another port, or stop the process that listens there.'),
  address_unusable: kind(500, 'INTERNAL', false, 'Correct the address that the message names.'),
  path_unusable: kind(
    500,
    'INTERNAL',
    false,
    'Correct the path that the message names, or its owner, permissions or disk.',
  ),
  spool_failed: kind(
    503,
    'UNAVAILABLE',
    true,
    "Retry; free space on the disk of the indexer's temporary files (TMPDIR).",
  ),
  store_unavailable: kind(503, 'UNAVAILABLE', true, 'Start the store, or correct --store.'),
  store_invalid: kind(500, 'INTERNAL', false, 'Index the repository again.'),
  index_too_large: kind(500, 'INTERNAL', false, 'Raise --index-cache-bytes, or index less of the repository.'),
  index_moved: kind(409, 'ABORTED', false, 'Compute the changes against the current version, or send all files.'),
  no_indexer: kind(503, 'UNAVAILABLE', false, 'Start llavacode indexer and give the gateway its address: --indexer.'),
  index_locked: kind(409, 'ABORTED', true, 'Wait for the other indexer of this repository.'),
  internal: kind(500, 'INTERNAL', false, 'A bug: report it with the request id and the log.'),
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof ERRORS;

export interface ErrorDetails {
  /** The request field at fault, as the client spelled it. */
  param?: string;
  /** Time after which a retry is sensible, in seconds. */
  retryAfterSeconds?: number;
  /** The limit that a refusal reached: the name of its flag without the leading dashes, like `max-inflight`. */
  limit?: string;
  cause?: unknown;
  /** What mends this failure, where it is not what the table has for its code; '' where the message says it itself. */
  remedy?: string | undefined;
  /** See {@link ServingError.publicMessage}: decided from code and cause where not given. */
  publicMessage?: string | undefined;
}

/**
 * A failure with a stable code. The message names the value at fault, and is for the log: it may name addresses and
 * paths of the inside.
 */
export class ServingError extends Error {
  readonly code: ErrorCode;
  /**
   * What a client may be told that is not to learn of the inside; undefined for a general sentence about the code. It
   * is the message where the client can mend the failure and all words are this process's own: what another process, a
   * library or the operating system says may name anything.
   */
  readonly publicMessage: string | undefined;
  readonly param: string | undefined;
  readonly retryAfterSeconds: number | undefined;
  readonly limit: string | undefined;
  /** What mends this failure: its own remedy, or that of the error of the same code that it wraps, or the table's. */
  readonly remedy: string;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'ServingError';
    this.code = code;
    const isPublic = ERRORS[code].http < 500 && !isForeign(details.cause);
    this.publicMessage = 'publicMessage' in details ? details.publicMessage : isPublic ? message : undefined;
    this.param = details.param;
    this.retryAfterSeconds = details.retryAfterSeconds;
    this.limit = details.limit;
    const { cause } = details;
    const inherited = cause instanceof ServingError && cause.code === code ? cause.remedy : ERRORS[code].remedy;
    this.remedy = details.remedy ?? inherited;
  }

  get kind(): ErrorKind {
    return ERRORS[this.code];
  }

  /** Turns anything caught into a ServingError; another error gets the code `fallback` and is kept as the cause. */
  static from(error: unknown, fallback: ErrorCode = 'internal'): ServingError {
    if (error instanceof ServingError) return error;
    const message = error instanceof Error ? error.message : String(error);
    return new ServingError(fallback, message, { cause: error, publicMessage: undefined });
  }
}

/** Whether an error that another one was made from comes from elsewhere: from the system, or another process. */
function isForeign(cause: unknown): boolean {
  if (cause instanceof ServingError) return cause.publicMessage === undefined;
  return cause instanceof Error && 'syscall' in cause;
}

/**
 * What people are told after the message of an error: its remedy. Many messages end with a remedy of their own, for the
 * value at fault; where that has the words of the remedy, they are not said again: '' then.
 * @param remedy that of the error, where it is at hand; the table's for the code otherwise
 */
export function remedyAfter(message: string, code: ErrorCode, remedy: string = ERRORS[code].remedy): string {
  return message.toLowerCase().includes(remedy.toLowerCase().replace(/\.$/, '')) ? '' : remedy;
}

/**
 * Runs a task; a failure of it with the code has the remedy.
 * @param remedy a sentence
 */
export async function withRemedy<T>(code: ErrorCode, remedy: string, task: () => Promise<T>): Promise<T> {
  try {
    return await task();
  } catch (error) {
    if (!(error instanceof ServingError) || error.code !== code) throw error;
    throw new ServingError(code, error.message, { cause: error, remedy });
  }
}

/** Codes that the same process would end with again: somebody has to correct something first. */
const FINAL: ReadonlySet<ErrorCode> = new Set([
  'config_invalid',
  'checkpoint_invalid',
  'bundle_invalid',
  'projector_invalid',
  'sample_invalid',
  'training_diverged',
  'runtime_unsupported',
  'provider_unavailable',
]);

/** The exit code of a process that must not be started again as it is: EX_CONFIG of sysexits.h. */
export const FINAL_EXIT_CODE = 78;

/** The exit code of a process that ends with this error. */
export const exitCodeOf = ({ code }: ServingError): number => (FINAL.has(code) ? FINAL_EXIT_CODE : 1);

export function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(ERRORS, code);
}
