# Builds a static binary, and an image that contains nothing else.
FROM rust:1-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /src
COPY . .
# Keeps the paths of the build machine out of the binary.
ENV RUSTFLAGS="--remap-path-prefix=/usr/local/cargo=cargo --remap-path-prefix=/src=."
RUN cargo build --release --locked -p msgbusd

FROM scratch
COPY --from=build /src/target/release/msgbusd /msgbusd
USER 65534:65534
EXPOSE 8000
ENTRYPOINT ["/msgbusd", "--bind", ":8000", "--open"]
