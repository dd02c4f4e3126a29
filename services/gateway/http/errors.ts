/** Failures as HTTP answers: OpenAI's shape, with the code of the error table. */
import type { z } from 'zod';
import { type ErrorCode, remedyAfter, ServingError } from '../../lib/process/errors.ts';

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: 'invalid_request_error' | 'rate_limit_error' | 'server_error';
    readonly param: string | null;
    readonly code: string;
  };
}

/** Failures in words that name nothing of the system's inside. Codes that are not listed get a general sentence. */
const OUTSIDE_WORDS: Partial<Record<ErrorCode, string>> = {
  no_worker: 'no worker can serve the request now',
  worker_lost: 'a worker was lost while it served the request',
  worker_stalled: 'a worker hung while it served the request',
  draining: 'the service is shutting down',
  deadline_exceeded: 'the request took longer than it may',
  store_unavailable: 'the store of indexes cannot be reached now',
  no_indexer: 'this service cannot index repositories',
  spool_failed: 'the indexer has no room for the upload now',
  saturated: 'the workers are busy now',
  context_length_exceeded: 'the prompt and its output are longer than what the model holds',
  payload_too_large: 'the request is larger than what the service takes',
};
const generalWords = (http: number) => (http < 500 ? 'the service refused the request' : 'the service failed');

/**
 * @param requestId stands for the reason of a failure that the client is not told: the log has the reason under it.
 * @param tellsInside whether the client may learn the system's inside, such as addresses of workers and paths: where no
 *   keys are needed, the client is the operator or whoever the operator trusts.
 */
export function errorBody(error: ServingError, requestId: string, tellsInside: boolean): ErrorBody {
  const { http } = error.kind;
  const type = http === 429 ? 'rate_limit_error' : http < 500 ? 'invalid_request_error' : 'server_error';
  const what = tellsInside ? insideMessage(error, requestId) : outsideMessage(error, requestId);
  const message =
    `${what.replace(/\.$/, '')}. ${remedyAfter(what, error.code, tellsInside ? error.remedy : undefined)}`.trimEnd();
  return { error: { message, type, param: error.param ?? null, code: error.code } };
}

/** An unexpected failure may tell too much, whoever the client is. */
const insideMessage = ({ code, message }: ServingError, requestId: string) =>
  code === 'internal' ? `unexpected failure of request ${requestId}` : message;

/** Only the public message crosses this border, or general words: see {@link ServingError.publicMessage}. */
function outsideMessage({ code, kind, publicMessage }: ServingError, requestId: string): string {
  return publicMessage ?? `${OUTSIDE_WORDS[code] ?? generalWords(kind.http)} (request ${requestId})`;
}

/** The client has closed its connection, or lost it. */
export const clientGone = () => new ServingError('client_gone', 'the client hung up');

/** Anything that a handler or fastify itself threw, as a ServingError. */
export function asServingError(error: unknown): ServingError {
  if (error instanceof ServingError || !(error instanceof Error)) return ServingError.from(error);
  const { code, statusCode } = error as Error & { code?: string; statusCode?: number };
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE')
    return new ServingError('payload_too_large', `${error.message} (--body-limit-bytes)`);
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE') return new ServingError('unsupported_media_type', error.message);
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return new ServingError('invalid_request', error.message, { cause: error });
  }
  return ServingError.from(error);
}

/** Limits on the quotes in an answer: otherwise the answer to a body of megabytes would have megabytes, too. */
const SHOWN = { problems: 10, characters: 200 };

/** The problems that a schema found: the first field at fault as `param`, the first few in the message. */
export function validationError(error: z.ZodError): ServingError {
  const problems = error.issues
    .slice(0, SHOWN.problems)
    .flatMap((issue) =>
      issue.code === 'unrecognized_keys'
        ? issue.keys
            .slice(0, SHOWN.problems)
            .map((key) => ({ field: short([...issue.path, key].join('.')), message: 'is not a field of this request' }))
        : [{ field: short(issue.path.join('.')), message: short(lowerFirst(reasonOf(issue))) }],
    );
  const message = problems
    .slice(0, SHOWN.problems)
    .map(({ field, message }) => (field ? `${field}: ${message}` : `body: ${message}`))
    .join('; ');
  return new ServingError('invalid_request', message, { param: problems.find(({ field }) => field)?.field });
}

/** The problem that an issue describes; for a record with a bad key, that of the key. */
const reasonOf = (issue: z.core.$ZodIssue) =>
  (issue.code === 'invalid_key' ? issue.issues[0]?.message : undefined) ?? issue.message;

const short = (text: string) => (text.length > SHOWN.characters ? `${text.slice(0, SHOWN.characters)}…` : text);

const lowerFirst = (text: string) => text.charAt(0).toLowerCase() + text.slice(1);
