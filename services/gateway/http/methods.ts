/** 405 for every method that a known URL does not take, derived from the routes themselves. */
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions } from 'fastify';
import { ServingError } from '../../lib/process/errors.ts';
import { PREFLIGHT_URL } from './cors.ts';
import { isDocs } from './docs.ts';

const METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];

/** The methods that each URL takes, as far as routes have been added. */
type MethodsOfUrls = ReadonlyMap<string, readonly string[]>;

/** Collects the methods of all routes that are added from now on. */
export function collectMethods(app: FastifyInstance): MethodsOfUrls {
  const methodsOf = new Map<string, readonly string[]>();
  app.addHook('onRoute', ({ url, method }: RouteOptions) => {
    // Those of plugins: the pages of the description, and any URL at all, of which one that is not known is 404.
    if (url === PREFLIGHT_URL || isDocs(url)) return;
    const methods = [method].flat().filter((each) => METHODS.includes(each)); // fastify adds HEAD itself
    methodsOf.set(url, [...(methodsOf.get(url) ?? []), ...methods]);
  });
  return methodsOf;
}

/** Adds a 405 for all other methods of these URLs, with an `allow` header. Call it after all routes have been added. */
export function addMethodNotAllowed(app: FastifyInstance, methodsOf: MethodsOfUrls): void {
  // Plugins are loaded in order, so this one sees the routes of those before it.
  app.register(async (scope) => {
    for (const [url, methods] of [...methodsOf]) addForUrl(scope, url, methods);
  });
}

function addForUrl(app: FastifyInstance, url: string, methods: readonly string[]): void {
  const allowed = methods.join(', ');
  const refuse = async (request: FastifyRequest, reply: FastifyReply) => {
    reply.header('allow', allowed);
    throw new ServingError('method_not_allowed', `${url} takes ${allowed}, not ${request.method}`);
  };
  const method = METHODS.filter((each) => !methods.includes(each));
  app.route({ method, url, config: { needsNoKey: true }, onRequest: refuse, handler: refuse });
}
