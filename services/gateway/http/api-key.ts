/** Where a request carries its API key. */
import type { IncomingHttpHeaders } from 'node:http';

/** Headers that hold a key by itself: clients of Anthropic and Mistral send the first, those of Azure the second. */
const KEY_HEADERS = ['x-api-key', 'api-key'];

/** The key of the header `authorization: Bearer <key>`, or else of another one; undefined where there is none. */
export function keyOf({ headers }: { readonly headers: IncomingHttpHeaders }): string | undefined {
  const bearer = /^Bearer +(\S+)$/i.exec(headers.authorization ?? '')?.[1];
  if (bearer !== undefined) return bearer;
  const found = KEY_HEADERS.map((name) => headers[name]).find((value) => value !== undefined && value !== '');
  return typeof found === 'string' ? found : undefined;
}
