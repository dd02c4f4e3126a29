/**
 * Converts a ServingError to a gRPC status and back. Its code travels in the metadata beside the nearest gRPC status:
 * foreign clients see a sensible status, and ours get the same error back.
 */
import { Metadata, type StatusObject, status } from '@grpc/grpc-js';
import { type ErrorCode, isErrorCode, ServingError } from '../process/errors.ts';

/** Begins the error of a connection whose server has not proven itself (membership.ts). */
export const SERVER_UNPROVEN = 'what listens there has not proven that it belongs to this system';

const CODE = 'llavacode-code';
const RETRY_AFTER = 'llavacode-retry-after-seconds';
const LIMIT = 'llavacode-limit';
/** Says that the message is one that clients may be told. */
const PUBLIC = 'llavacode-public';

/**
 * Error codes for statuses without a code of ours, which come from the transport. CANCELLED means that the peer broke
 * off; calls that we cancel ourselves end with the reason of their signal.
 */
const FOREIGN: Partial<Record<status, ErrorCode>> = {
  [status.CANCELLED]: 'worker_lost',
  [status.INTERNAL]: 'worker_lost',
  [status.DEADLINE_EXCEEDED]: 'deadline_exceeded',
  [status.UNAVAILABLE]: 'worker_lost',
  [status.RESOURCE_EXHAUSTED]: 'payload_too_large',
};

/** Limit of a message in UTF-16 units: percent-encoded, it must fit into an HTTP/2 trailer, whatever it quotes. */
const LONGEST_DETAILS = 1_000;

export function toStatus(error: unknown): StatusObject {
  const failure = ServingError.from(error);
  const metadata = new Metadata();
  metadata.set(CODE, failure.code);
  if (failure.retryAfterSeconds !== undefined) metadata.set(RETRY_AFTER, String(failure.retryAfterSeconds));
  if (failure.limit !== undefined) metadata.set(LIMIT, failure.limit);
  if (failure.publicMessage === failure.message) metadata.set(PUBLIC, '1');
  return { code: status[failure.kind.grpc as keyof typeof status], details: printable(failure.message), metadata };
}

/**
 * A message that does not fit breaks the connection with all its calls. A lone surrogate cannot be encoded, and grpc-js
 * then sends no status at all, so that the call never ends.
 */
function printable(message: string): string {
  const short = message.length > LONGEST_DETAILS ? `${message.slice(0, LONGEST_DETAILS)}…` : message;
  return short.replaceAll(/\p{Surrogate}/gu, '\ufffd');
}

/**
 * @param peer address of the other side, for error messages.
 * @param quotesClient whether the other side has read what a client sent, as the indexer has: then a message that it
 *   says is public stays so. What workers say is for the log.
 */
export function fromStatus(error: unknown, peer: string, quotesClient = false): ServingError {
  if (!isStatus(error)) return ServingError.from(error, 'worker_lost');
  const code = error.metadata?.get(CODE)[0]?.toString() ?? '';
  if (!isErrorCode(code)) {
    const unproven = error.code === status.UNAVAILABLE && error.details.includes(SERVER_UNPROVEN);
    const foreign = unproven ? 'not_a_member' : (FOREIGN[error.code] ?? 'internal');
    return new ServingError(foreign, `${peer}: ${error.details}`, { cause: error, publicMessage: undefined });
  }
  const retryAfter = Number(error.metadata.get(RETRY_AFTER)[0]);
  const isPublic = quotesClient && error.metadata.get(PUBLIC).length > 0;
  return new ServingError(code, error.details, {
    cause: error,
    publicMessage: isPublic ? error.details : undefined,
    retryAfterSeconds: Number.isFinite(retryAfter) ? retryAfter : undefined,
    limit: error.metadata.get(LIMIT)[0]?.toString(),
  });
}

function isStatus(error: unknown): error is StatusObject {
  return error instanceof Error && 'code' in error && 'details' in error && 'metadata' in error;
}
