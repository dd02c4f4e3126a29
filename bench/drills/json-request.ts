/** One request of JSON and its answer, for what is not streamed. */
import { isErrorCode, ServingError } from '../../services/lib/process/errors.ts';
import { TIMEOUT_MS } from './streams.ts';

/** @throws ServingError with the server's code; what fetch throws. */
export async function ask<T>(method: 'POST' | 'PUT', url: string, body: object): Promise<T> {
  const response = await fetch(url, {
    method,
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const answer: unknown = await response.json();
  if (response.ok) return answer as T;
  const { error } = answer as { error?: { code?: unknown; message?: unknown } };
  const code = String(error?.code);
  throw new ServingError(isErrorCode(code) ? code : 'internal', String(error?.message ?? `HTTP ${response.status}`));
}
