# Builds realtime_service and token_gen, and puts them into an image with glibc, /tmp and nothing else.
# glibc rather than a static musl build: musl's allocator has one lock for all threads.

FROM rust:1.95-bookworm AS build
WORKDIR /build

# The dependencies alone, against empty sources: this layer lasts until Cargo.toml or Cargo.lock change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches \
    && echo 'fn main() {}' | tee src/main.rs token_gen.rs benches/fanout.rs >src/lib.rs \
    && cargo build --release --locked --bins

# The sources keep the times of the checkout, which may be older than the build above: without the touch
# cargo would take the empty program for the current one.
COPY token_gen.rs ./
COPY src src
RUN touch src/lib.rs src/main.rs token_gen.rs \
    && cargo build --release --locked --bins

# No shell, no package manager, not root. Its /tmp takes the private Unix socket of the REST part.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/realtime_service /build/target/release/token_gen /
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/realtime_service", "healthcheck"]
ENTRYPOINT ["/realtime_service"]
